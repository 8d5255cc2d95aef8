// The chats of this browser, by day.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../shared/view.js";
import { Icon, Mark } from "../shared/icons.js";
import { titleOf } from "./tree.js";

export function Sidebar({ chats, current, open, drawer, answers, onOpen, onClose, onDialog, onRemove }) {
  const first = useRef(null);
  useEffect(() => void (drawer && open && first.current?.focus()), [drawer, open]);
  return html`
    <nav class=${`side ${drawer ? "drawer" : ""}`} data-open=${open} aria-label="Chats" inert=${!open}>
      <div class="side-head">
        <span class="brand"><${Mark} />swarm</span>
        ${drawer && html`<button type="button" class="quiet square" aria-label="Close" onClick=${onClose}><${Icon} name="close" /></button>`}
      </div>
      <button type="button" class="new" ref=${first} onClick=${() => onOpen(null)}><${Icon} name="plus" />New chat</button>
      <div class="chats">
        ${byDay(chats.all()).map(
          ([day, some]) => html`
            <h2 key=${day} id=${`day-${day}`}>${day}</h2>
            <ul key=${`${day} chats`} aria-labelledby=${`day-${day}`}>
              ${some.map((chat) => html`<${Entry} key=${chat.id} chat=${chat} current=${chat.id === current} busy=${answers.runs(chat.id)} chats=${chats} onOpen=${onOpen} onRemove=${onRemove} />`)}
            </ul>
          `,
        )}
      </div>
      <div class="side-foot">
        <a href="/swarm">The whole swarm</a>
        <button type="button" class="link-like" onClick=${() => onDialog("shortcuts")}>Keys</button>
      </div>
    </nav>
  `;
}

function byDay(all) {
  const today = new Date().setHours(0, 0, 0, 0);
  const days = new Map();
  for (const chat of all) {
    const day = chat.updated >= today ? "Today" : chat.updated >= today - 86_400_000 ? "Yesterday" : "Earlier";
    days.set(day, [...(days.get(day) ?? []), chat]);
  }
  return [...days];
}

function Entry({ chat, current, busy, chats, onOpen, onRemove }) {
  const [mode, setMode] = useState(null); // null, "rename" or "remove"
  const title = titleOf(chat);
  if (mode === "rename") {
    const done = (name) => {
      setMode(null);
      if (name !== null && name.trim() !== title) chats.save({ ...chat, title: name.trim().slice(0, 120) });
    };
    return html`<li><${Rename} title=${title} onDone=${done} /></li>`;
  }
  if (mode === "remove") {
    return html`<li class="sure" role="group" aria-label=${`Delete ${title}?`}>
      <span>Delete?</span>
      <${Sure} onYes=${() => onRemove(chat.id)} onNo=${() => setMode(null)} />
    </li>`;
  }
  return html`
    <li class=${`entry ${current ? "current" : ""}`}>
      <a href=${`#${chat.id}`} aria-current=${current ? "page" : undefined} title=${title}
        onClick=${(event) => (event.preventDefault(), onOpen(chat.id))}>
        ${busy && html`<i class="busy"></i>`}<span>${title}</span>${busy && html`<span class="sr-only">, answering</span>`}
      </a>
      <button type="button" class="quiet small" aria-label=${`Rename ${title}`} title="Rename" onClick=${() => setMode("rename")}><${Icon} name="edit" /></button>
      <button type="button" class="quiet small" aria-label=${`Delete ${title}`} title="Delete" onClick=${() => setMode("remove")}><${Icon} name="trash" /></button>
    </li>
  `;
}

function Rename({ title, onDone }) {
  const field = useRef(null);
  const over = useRef(false); // a field that is taken away loses the focus once more
  useLayoutEffect(() => field.current.select(), []);
  const end = (name) => {
    if (!over.current) onDone(name);
    over.current = true;
  };
  const key = (event) => {
    if (event.key === "Enter") end(event.target.value);
    if (event.key === "Escape") end(null);
    event.stopPropagation();
  };
  return html`<input class="rename" ref=${field} aria-label="Name of the chat" maxlength="120" value=${title} onKeyDown=${key} onBlur=${(event) => end(event.target.value)} />`;
}

function Sure({ onYes, onNo }) {
  const no = useRef(null);
  useLayoutEffect(() => no.current.focus(), []);
  return html`
    <button type="button" class="yes" onClick=${onYes}>Delete</button>
    <button type="button" class="no" ref=${no} onClick=${onNo}>Keep</button>
  `;
}
