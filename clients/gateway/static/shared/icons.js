// Line icons, 20 x 20, drawn in the colour of the text beside them; never read aloud.
import { html } from "./view.js";

const PATHS = {
  check: "m4.500 10.500 3.500 3.500 7.500-8",
  chevronLeft: "m12 5-5 5 5 5",
  chevronRight: "m8 5 5 5-5 5",
  close: "m5.500 5.500 9 9m0-9-9 9",
  copy: "M7.500 7.500V5a1.500 1.500 0 0 1 1.500-1.500h6A1.500 1.500 0 0 1 16.500 5v6a1.500 1.500 0 0 1-1.500 1.500h-2.500M5 7.500h6A1.500 1.500 0 0 1 12.500 9v6a1.500 1.500 0 0 1-1.500 1.500H5A1.500 1.500 0 0 1 3.500 15V9A1.500 1.500 0 0 1 5 7.500Z",
  download: "M10 3.500v9m-3.500-3 3.500 3.500 3.500-3.500M4 16.500h12",
  edit: "m12.500 4.500 3 3M4 16l.700-3.500 8.800-8.800a1.500 1.500 0 0 1 2.100 0l.700.700a1.500 1.500 0 0 1 0 2.100L7.500 15.300 4 16Z",
  keyboard: "M3 5.500h14v9H3v-9Zm2.500 3h.010m2.990 0h.010m2.990 0h.010m2.990 0h.010M6.500 11.700h7",
  menu: "M3.500 6h13m-13 4h13m-13 4h13",
  moon: "M16.500 11.500a6.500 6.500 0 1 1-8-8 5.500 5.500 0 0 0 8 8Z",
  plus: "M10 4.500v11m-5.500-5.500h11",
  redo: "M16 10a6 6 0 1 1-1.900-4.400M16.200 3v3.500h-3.500",
  send: "M10 16V4.500m-5 5 5-5 5 5",
  sliders: "M3.500 6h7m4 0h2m-13 8h2m4 0h7M12.500 4.200v3.600m-5 4.400v3.600",
  stop: "M6.500 6.500h7v7h-7z",
  sun: "M10 6.800a3.200 3.200 0 1 1 0 6.400 3.200 3.200 0 0 1 0-6.400ZM10 2.500v1.300m0 12.400v1.300M2.500 10h1.300m12.400 0h1.300M4.700 4.700l.900.900m8.800 8.800.900.900m0-10.600-.900.900m-8.800 8.800-.900.900",
  trash: "M4 6h12m-7.500-2.500h3M6 6l.600 9.200a1.400 1.400 0 0 0 1.400 1.300h4a1.400 1.400 0 0 0 1.400-1.300L14 6",
  warning: "M10 4 3 16h14L10 4Zm0 5v3.200m0 1.800v.100",
};

export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>
`;

// The mark: peers and the ways between them, split ends and all.
export const Mark = () => html`
  <svg class="mark" viewBox="0 0 32 32" width="28" height="28" aria-hidden="true" focusable="false">
    <path class="ways" d="M9.5 11.5 15 16m2.500-1.500 5-5M17.500 17.500 22 22" />
    <circle cx="8" cy="10" r="3" /><circle cx="16" cy="16.500" r="3.200" />
    <circle cx="24" cy="8.500" r="2.600" /><circle cx="23.500" cy="23.500" r="3" />
  </svg>
`;
