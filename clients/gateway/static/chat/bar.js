// Above the conversation: the model, how its swarm is, and what can be opened.
import { html } from "../shared/view.js";
import { Icon } from "../shared/icons.js";
import { count } from "../shared/words.js";
import { online, ready } from "../shared/picture.js";
import { ThemeSwitch } from "../shared/colours.js";

export function Bar({ title, gateway, model, settings, running, narrow, chainOpen, onSettings, onMenu, onDialog, onChain }) {
  return html`
    <header class="bar">
      ${narrow && html`<button type="button" class="quiet square" aria-label="Chats" onClick=${onMenu}><${Icon} name="menu" /></button>`}
      <h1 class="sr-only">${title}</h1>
      <${ModelChoice} models=${gateway.models} settings=${settings} onChange=${onSettings} disabled=${running} />
      <span class="spread"></span>
      <${Pulse} gateway=${gateway} model=${model} />
      <button type="button" class="quiet square" aria-label="Settings of this chat" title="Settings of this chat" onClick=${onDialog}><${Icon} name="sliders" /></button>
      <${ThemeSwitch} />
      <button type="button" class="quiet square" aria-label="The chain of this answer" title="The chain of this answer" aria-expanded=${chainOpen} aria-controls="chain" onClick=${onChain}><${Icon} name="chain" /></button>
    </header>
  `;
}

function ModelChoice({ models, settings, onChange, disabled }) {
  if (!models?.length) return html`<span class="model-none">${models ? "no model" : "…"}</span>`;
  if (models.length === 1) return html`<span class="model-one">${models[0]}</span>`;
  const pick = (event) => onChange({ ...settings, model: event.target.value });
  return html`
    <span class="model-choice">
      <select class="model" aria-label="Model" value=${settings.model} disabled=${disabled} onChange=${pick}>
        ${models.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
      </select>
      <${Icon} name="chevronLeft" />
    </span>
  `;
}

// How the swarm is, in a dot and a few words; leads to the whole picture.
function Pulse({ gateway, model }) {
  const [state, words] = gateway.lost
    ? ["bad", "gateway lost"]
    : !gateway.picture
      ? ["wait", "looking"]
      : model && ready(model)
        ? ["good", count(online(model).length, "peer")]
        : ["bad", "not complete"];
  return html`<a class="pulse" href="/swarm" data-state=${state} aria-label=${`The swarm: ${words}`} title="The whole swarm"><i></i><span>${words}</span></a>`;
}
