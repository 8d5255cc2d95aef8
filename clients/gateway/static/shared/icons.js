// Line icons, 20 x 20, drawn in the colour of the text beside them; never read aloud.
import { html } from "./view.js";

const PATHS = {
  chain: "M8.2 4.5a1.8 1.8 0 1 0 3.6 0 1.8 1.8 0 1 0-3.6 0Zm0 5.5a1.8 1.8 0 1 0 3.6 0 1.8 1.8 0 1 0-3.6 0Zm0 5.5a1.8 1.8 0 1 0 3.6 0 1.8 1.8 0 1 0-3.6 0ZM10 6.3v1.9m0 3.6v1.9",
  check: "m4.5 10.5 3.5 3.5 7.5-8",
  chevronLeft: "m12 5-5 5 5 5",
  chevronRight: "m8 5 5 5-5 5",
  close: "m5.5 5.5 9 9m0-9-9 9",
  copy: "M7.5 7.5V5a1.5 1.5 0 0 1 1.5-1.5h6A1.5 1.5 0 0 1 16.5 5v6a1.5 1.5 0 0 1-1.5 1.5h-2.5M5 7.5h6A1.5 1.5 0 0 1 12.5 9v6a1.5 1.5 0 0 1-1.5 1.5H5A1.5 1.5 0 0 1 3.5 15V9A1.5 1.5 0 0 1 5 7.5Z",
  download: "M10 3.5v9m-3.5-3 3.5 3.5 3.5-3.5M4 16.5h12",
  edit: "m12.5 4.5 3 3M4 16l.7-3.5 8.8-8.8a1.5 1.5 0 0 1 2.1 0l.7.7a1.5 1.5 0 0 1 0 2.1L7.5 15.3 4 16Z",
  keyboard: "M3 5.5h14v9H3v-9Zm2.5 3h.01m2.99 0h.01m2.99 0h.01m2.99 0h.01M6.5 11.7h7",
  menu: "M3.5 6h13m-13 4h13m-13 4h13",
  moon: "M16.5 11.5a6.5 6.5 0 1 1-8-8 5.5 5.5 0 0 0 8 8Z",
  plus: "M10 4.5v11m-5.5-5.5h11",
  redo: "M16 10a6 6 0 1 1-1.9-4.4M16.2 3v3.5h-3.5",
  send: "M10 16V4.5m-5 5 5-5 5 5",
  sliders: "M3.5 6h7m4 0h2m-13 8h2m4 0h7M12.5 4.2v3.6m-5 4.4v3.6",
  stop: "M6.5 6.5h7v7h-7z",
  sun: "M10 6.8a3.2 3.2 0 1 1 0 6.4 3.2 3.2 0 0 1 0-6.4ZM10 2.5v1.3m0 12.4v1.3M2.5 10h1.3m12.4 0h1.3M4.7 4.7l.9.9m8.8 8.8.9.9m0-10.6-.9.9m-8.8 8.8-.9.9",
  trash: "M4 6h12m-7.5-2.5h3M6 6l.6 9.2a1.4 1.4 0 0 0 1.4 1.3h4a1.4 1.4 0 0 0 1.4-1.3L14 6",
  warning: "M10 4 3 16h14L10 4Zm0 5v3.2m0 1.8v.1",
};

export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>
`;

// The mark: peers and the ways between them, split ends and all.
export const Mark = () => html`
  <svg class="mark" viewBox="0 0 32 32" width="28" height="28" aria-hidden="true" focusable="false">
    <path class="ways" d="M9.5 11.5 15 16m2.5-1.5 5-5M17.5 17.5 22 22" />
    <circle cx="8" cy="10" r="3" /><circle cx="16" cy="16.5" r="3.2" />
    <circle cx="24" cy="8.5" r="2.6" /><circle cx="23.5" cy="23.5" r="3" />
  </svg>
`;
