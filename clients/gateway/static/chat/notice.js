// What stands in the way of answers, in a sentence above the field; it goes away by itself.
import { html } from "../shared/view.js";
import { blocks } from "../shared/words.js";
import { ready } from "../shared/picture.js";

export function Notice({ gateway, model, full, wanted, onKey }) {
  if (gateway.lost) return html`<p class="notice bad" role="alert">The gateway can't be reached. Trying again by itself.</p>`;
  if (gateway.keyWanted)
    return html`<p class="notice" role="alert">This gateway wants an API key. <button type="button" class="link" onClick=${onKey}>Enter it</button></p>`;
  if (full)
    return html`<p class="notice bad" role="alert">This browser's storage is full: what is said now is lost on reload. Export or delete chats to make room.</p>`;
  if (gateway.picture && gateway.models?.length && !(model && ready(model)))
    return html`<p class="notice" role="status"><i class="turning"></i>${lacking(model, wanted)}</p>`;
  return null;
}

function lacking(model, wanted) {
  if (!model?.peers.length) return `No peer serves ${wanted} now. This page goes on by itself when one comes.`;
  return `The swarm lacks ${blocks(model.missing)} of ${wanted}. This page goes on by itself when a peer brings them.`;
}
