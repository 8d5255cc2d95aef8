// One message: what was asked, or an answer with how it came about.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../shared/view.js";
import { Icon } from "../shared/icons.js";
import { count, figure, plain, seconds } from "../shared/words.js";
import { ALIVE } from "./answering.js";
import { copyText, Markdown } from "./markdown.js";

export function Question({ node, same, act, idle }) {
  const [editing, setEditing] = useState(false);
  const button = useRef(null);
  if (editing) {
    const close = () => (setEditing(false), requestAnimationFrame(() => button.current?.focus()));
    const send = (text) => (setEditing(false), act.edit(node, text));
    return html`<li class="question"><${Editor} text=${node.text} onSend=${send} onClose=${close} /></li>`;
  }
  return html`
    <li class="question" aria-label="You said">
      <div class="bubble">${node.text}</div>
      <div class="acts">
        <${Turn} node=${node} same=${same} act=${act} idle=${idle} what="Version" />
        <${Copy} text=${node.text} />
        ${idle && html`<button type="button" class="quiet small" ref=${button} data-edit aria-label="Edit and ask again" title="Edit and ask again" onClick=${() => setEditing(true)}><${Icon} name="edit" /></button>`}
      </div>
    </li>
  `;
}

function Editor({ text, onSend, onClose }) {
  const field = useRef(null);
  const grow = () => {
    field.current.style.height = "auto";
    field.current.style.height = `${field.current.scrollHeight}px`;
  };
  useLayoutEffect(() => {
    grow();
    field.current.focus();
    field.current.setSelectionRange(text.length, text.length);
  }, []);
  const send = () => field.current.value.trim() && onSend(field.current.value.trim());
  const key = (event) => {
    if (event.key === "Escape") onClose();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
    else return;
    event.preventDefault();
  };
  return html`
    <div class="editor">
      <textarea ref=${field} aria-label="Edit your message" rows="1" onInput=${grow} onKeyDown=${key}>${text}</textarea>
      <div class="editor-acts">
        <button type="button" class="plain" onClick=${onClose}>Cancel</button>
        <button type="button" class="primary" onClick=${send}>Send</button>
      </div>
    </div>
  `;
}

export function Answer({ node, same, act, idle, running, last }) {
  const elsewhere = useElsewhere(node, running);
  const body = useMemo(() => html`<${Markdown} text=${node.text} />`, [node.text]);
  const growing = running || elsewhere;
  return html`
    <li class="answer" aria-label="Answer" aria-busy=${growing} data-growing=${growing}>
      ${node.thoughts && html`<details class="thoughts"><summary>Thoughts</summary><div>${node.thoughts}</div></details>`}
      ${body}
      ${growing && !node.text && html`<p class="waiting"><i class="turning"></i>${node.chain.waiting ? `Waiting: ${node.chain.waiting}` : node.chain.hops.length ? "Reading" : "Finding a chain"}</p>`}
      ${growing && node.text && node.chain.waiting && html`<p class="waiting"><i class="turning"></i>${`Waiting: ${node.chain.waiting}`}</p>`}
      ${node.chain.moments.slice(-3).map((moment) => html`<p key=${moment.text} class="moment"><${Icon} name="redo" /><span>${moment.text}</span></p>`)}
      ${!growing && html`<${Trouble} node=${node} last=${last} act=${act} idle=${idle} />`}
      ${!growing && html`
        <div class="acts">
          <${Turn} node=${node} same=${same} act=${act} idle=${idle} what="Answer" />
          ${node.text && html`<${Copy} text=${node.text} />`}
          ${idle && html`<button type="button" class="quiet small" aria-label="Answer again" title="Answer again" onClick=${() => act.again(node)}><${Icon} name="redo" /></button>`}
          <${Meta} node=${node} act=${act} />
        </div>
      `}
    </li>
  `;
}

// Whether another tab is at this answer: it keeps saving it.
function useElsewhere(node, running) {
  const [, look] = useState(0);
  const open = !node.done && !running;
  useEffect(() => {
    if (!open) return undefined;
    const timer = setInterval(() => look((n) => n + 1), ALIVE);
    return () => clearInterval(timer);
  }, [open]);
  return open && Date.now() - node.seen < ALIVE;
}

function Trouble({ node, last, act, idle }) {
  const words =
    node.done === "error"
      ? node.error.message
      : node.done === "stopped"
        ? node.text ? null : "Stopped before the first word."
        : node.done === "length"
          ? "The answer is cut: it has reached the most tokens allowed."
          : node.done
            ? null
            : "This answer was interrupted.";
  if (!words) return null;
  const bad = node.done === "error";
  const again = bad && last && idle;
  return html`
    <div class=${`trouble ${bad ? "bad" : ""}`} role=${bad ? "alert" : undefined}>
      <span>${plain(words, 600)}${bad && node.error.after ? ` Worth another try in ${count(node.error.after, "second")}.` : ""}</span>
      ${again && node.error.status === 401 && html`<button type="button" class="plain" onClick=${act.askKey}>Enter a key</button>`}
      ${again && html`<button type="button" class="plain" onClick=${() => act.again(node)}>Try again</button>`}
    </div>
  `;
}

function Meta({ node, act }) {
  const { stats, chain } = node;
  const figures = [];
  if (stats) {
    figures.push(count(stats.tokens, "token"));
    if (stats.rate) figures.push(`${figure(stats.rate)} tokens/s`);
    figures.push(`first after ${seconds(stats.first)}`);
  }
  return html`
    <span class="meta">
      ${figures.map((words) => html`<span key=${words}>${words}</span>`)}
      ${chain.hops.length > 0 && html`<button type="button" class="link" onClick=${() => act.showChain(node)}>${count(chain.hops.length, "hop")}</button>`}
    </span>
  `;
}

function Turn({ node, same, act, idle, what }) {
  if (same.length < 2) return null;
  const at = same.findIndex((other) => other.id === node.id);
  return html`
    <span class="turn" role="group" aria-label=${`${what} ${at + 1} of ${same.length}`}>
      <button type="button" class="quiet small" disabled=${!idle || at === 0} aria-label="The one before" onClick=${() => act.turn(same[at - 1])}><${Icon} name="chevronLeft" /></button>
      <span aria-hidden="true">${at + 1}/${same.length}</span>
      <button type="button" class="quiet small" disabled=${!idle || at === same.length - 1} aria-label="The next one" onClick=${() => act.turn(same[at + 1])}><${Icon} name="chevronRight" /></button>
    </span>
  `;
}

function Copy({ text }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    setDone(await copyText(text));
    setTimeout(() => setDone(false), 1600);
  };
  return html`<button type="button" class="quiet small" aria-label=${done ? "Copied" : "Copy"} title="Copy" onClick=${copy}><${Icon} name=${done ? "check" : "copy"} /></button>`;
}
