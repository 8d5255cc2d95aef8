// What is asked apart: settings of a chat, the API key, and the list of keys.
import { html, useEffect, useRef, useState } from "../shared/view.js";
import { Icon } from "../shared/icons.js";
import { download } from "./export.js";

function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    const shown = dialog.current;
    shown.showModal();
    return () => {
      const now = document.activeElement; // after Escape the browser has given the focus back itself, and the reader may be further on
      if (now === document.body || shown.contains(now)) before?.focus?.();
    };
  }, []);
  const outside = (event) => event.target === dialog.current && onClose();
  return html`
    <dialog ref=${dialog} aria-labelledby="dialog-title" onClose=${onClose} onMouseDown=${outside}>
      <div class="dialog-body">
        <header>
          <h2 id="dialog-title">${title}</h2>
          <button type="button" class="quiet square" aria-label="Close" onClick=${onClose}><${Icon} name="close" /></button>
        </header>
        ${children}
      </div>
    </dialog>
  `;
}

// --- settings ---

const NUMBERS = [
  { name: "temperature", otherwise: "1", label: "Temperature", hint: "0: always the likeliest word. Higher: more surprise.", min: 0, max: 2, step: 0.1 },
  { name: "top_p", otherwise: "1", label: "Top p", hint: "Choose among the likeliest words that hold this share.", min: 0, max: 1, step: 0.05 },
  { name: "max_tokens", otherwise: "as many as fit", label: "Most tokens", hint: "Where an answer is cut.", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", otherwise: "random", label: "Seed", hint: "The same seed and question give the same answer.", min: 0, max: 2 ** 31 - 1, step: 1 },
];

export function SettingsDialog({ settings, models, chat, onChange, onKey, onClose }) {
  const set = (name, value) => onChange({ ...settings, [name]: value });
  return html`
    <${Dialog} title="Settings of this chat" onClose=${onClose}>
      ${models?.length > 1 && html`
        <label class="field"><span>Model</span>
          <select value=${settings.model} onChange=${(event) => set("model", event.target.value)}>
            ${models.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
          </select>
        </label>
      `}
      <label class="field"><span>System prompt</span>
        <textarea rows="3" maxlength="20000" placeholder="How the model should behave" value=${settings.system ?? ""}
          onInput=${(event) => set("system", event.target.value)}></textarea>
      </label>
      <div class="numbers">
        ${NUMBERS.map((field) => html`<${NumberField} key=${field.name} ...${field} value=${settings[field.name]} onChange=${(value) => set(field.name, value)} />`)}
      </div>
      <p class="small-print">An empty field is left to the gateway. New chats begin with what is chosen here.</p>
      <div class="dialog-acts">
        ${chat && html`
          <button type="button" class="plain" onClick=${() => download(chat, "markdown")}><${Icon} name="download" />Markdown</button>
          <button type="button" class="plain" onClick=${() => download(chat, "json")}><${Icon} name="download" />JSON</button>
        `}
        <span class="spread"></span>
        <button type="button" class="plain" onClick=${onKey}>API key</button>
        <button type="button" class="primary" onClick=${onClose}>Done</button>
      </div>
    <//>
  `;
}

function NumberField({ name, otherwise, label, hint, min, max, step, value, onChange }) {
  const [text, setText] = useState(Number.isFinite(value) ? String(value) : "");
  const [wrong, setWrong] = useState(false);
  const input = (event) => {
    setText(event.target.value);
    const bad = !event.target.validity.valid;
    setWrong(bad);
    if (!bad) onChange(event.target.value === "" ? undefined : Number(event.target.value));
  };
  const id = `field-${name}`;
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      <input id=${id} type="number" inputmode="decimal" min=${min} max=${max} step=${step} value=${text} placeholder=${otherwise} aria-describedby=${`${id}-hint`}
        aria-invalid=${wrong} onInput=${input} />
      <p class="hint" id=${`${id}-hint`}>${wrong ? `From ${min} to ${max}${step === 1 ? ", a whole number" : ""}.` : hint}</p>
    </div>
  `;
}

// --- the key ---

export function KeyDialog({ known, onKeep, onClose }) {
  const field = useRef(null);
  const keep = (event) => {
    event.preventDefault();
    onKeep(field.current.value.trim());
  };
  return html`
    <${Dialog} title="API key" onClose=${onClose}>
      <form onSubmit=${keep}>
        <label class="field"><span>Key</span>
          <input ref=${field} type="password" autocomplete="off" autofocus spellcheck="false" value=${known} />
        </label>
        <p class="small-print">Whoever runs this gateway gives it to you. It stays in this tab and is forgotten when the tab is closed.</p>
        <div class="dialog-acts">
          <span class="spread"></span>
          ${known && html`<button type="button" class="plain" onClick=${() => onKeep("")}>Forget it</button>`}
          <button type="submit" class="primary">Use it</button>
        </div>
      </form>
    <//>
  `;
}

// --- keys ---

const KEYS = [
  ["Send", "Enter"],
  ["A new line", "Shift Enter"],
  ["Stop the answer", "Esc"],
  ["Edit the last question", "↑"],
  ["Go to the message field", "/"],
  ["A new chat", "Alt N"],
  ["The chat above, below", "Alt ↑ ↓"],
  ["The chain of this answer", "Alt C"],
  ["Settings of this chat", "Alt ,"],
  ["These keys", "?"],
];

export function ShortcutsDialog({ onClose }) {
  return html`
    <${Dialog} title="Keys" onClose=${onClose}>
      <dl class="keys">
        ${KEYS.map(([what, keys]) => html`<div key=${what}><dt>${what}</dt><dd>${keys.split(" ").map((key) => html`<kbd key=${key}>${key}</kbd>`)}</dd></div>`)}
      </dl>
    <//>
  `;
}
