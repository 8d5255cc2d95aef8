// The messages of a chat, kept at their end while they grow unless the reader has scrolled up.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../shared/view.js";
import { Icon } from "../shared/icons.js";
import { list, peerName } from "../shared/words.js";
import { online, ready } from "../shared/picture.js";
import { Answer, Question } from "./message.js";
import { siblings } from "./tree.js";

const NEAR = 80; // px from the end that count as being there

const IDEAS = [
  "Explain how a rainbow forms, simply",
  "Write a Python function that finds prime numbers",
  "Give me three names for a small bakery",
];

export function Conversation({ chat, messages, running, act, model, gateway }) {
  const place = useRef(null);
  const follows = useRef(true);
  const [away, setAway] = useState(false);
  const end = () => place.current.scrollTo({ top: place.current.scrollHeight });
  const scrolled = () => {
    const box = place.current;
    follows.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    setAway(!follows.current);
  };
  useLayoutEffect(() => {
    follows.current = true;
    end();
  }, [chat.id, messages.length]);
  useEffect(() => void (follows.current && end()));
  if (!messages.length) return html`<div class="scroll" ref=${place}><${Welcome} model=${model} onSend=${act.send} able=${gateway.models?.length} /></div>`;
  return html`
    <div class="scroll" ref=${place} onScroll=${scrolled} tabindex="0" role="region" aria-label="Messages">
      <ol class="messages">
        ${messages.map((node, i) => {
          const same = siblings(chat, node);
          const Message = node.role === "user" ? Question : Answer;
          const last = i === messages.length - 1;
          return html`<${Message} key=${node.id} node=${node} same=${same} act=${act} idle=${!running} running=${running && last} last=${last} />`;
        })}
      </ol>
    </div>
    ${away && html`<button type="button" class="to-end" onClick=${end} aria-label="To the end"><${Icon} name="send" /></button>`}
  `;
}

function Welcome({ model, onSend, able }) {
  return html`
    <div class="welcome">
      <h2>Ask the swarm</h2>
      <p>${model && ready(model) ? who(model) : "A model too big for one machine, computed by many."}</p>
      ${able && html`<ul class="ideas">${IDEAS.map((idea) => html`<li key=${idea}><button type="button" onClick=${() => onSend(idea)}>${idea}</button></li>`)}</ul>`}
    </div>
  `;
}

function who(model) {
  const names = online(model).map(peerName);
  const some = names.length > 5 ? `${names.slice(0, 4).join(", ")} and ${names.length - 4} more` : list(names);
  const verb = names.length === 1 ? "holds" : "hold";
  return `${some} ${verb} the ${model.numBlocks} blocks of this model and will compute your answer together.`;
}
