// Where a message is written.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../shared/view.js";
import { Icon } from "../shared/icons.js";

export function Composer({ box, running, onSend, onStop, narrow, last }) {
  const [text, setText] = useState("");
  const fit = () => {
    const field = box.current;
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight, 0.4 * innerHeight)}px`;
  };
  useLayoutEffect(fit, [text]);
  useEffect(() => void (narrow || box.current.focus()), []);
  const send = () => {
    if (running || !text.trim()) return;
    setText("");
    onSend(text.trim());
  };
  const key = (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && !text && last && !running) {
      event.preventDefault();
      [...document.querySelectorAll("[data-edit]")].at(-1)?.click();
    }
  };
  return html`
    <form class="composer" onSubmit=${(event) => (event.preventDefault(), send())}>
      <textarea ref=${box} rows="1" aria-label="Message" placeholder="Ask anything" value=${text} enterkeyhint="send"
        onInput=${(event) => setText(event.target.value)} onKeyDown=${key}></textarea>
      ${running
        ? html`<button type="button" class="round" aria-label="Stop" title="Stop (Esc)" onClick=${onStop}><${Icon} name="stop" /></button>`
        : html`<button type="submit" class="round" aria-label="Send" title="Send (Enter)" disabled=${!text.trim()}><${Icon} name="send" /></button>`}
    </form>
    <p class="honest">Strangers' machines compute this and can read it. Send nothing secret.</p>
  `;
}
