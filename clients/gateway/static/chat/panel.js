// Beside the chat: the chain that computes the answer, hop by hop, and what became of it.
import { html, useEffect, useRef } from "../shared/view.js";
import { Icon } from "../shared/icons.js";
import { count, milliseconds } from "../shared/words.js";

export function Panel({ open, drawer, answer, running, model, onClose }) {
  const close = useRef(null);
  useEffect(() => void (drawer && open && close.current?.focus()), [drawer, open]);
  const chain = answer?.chain;
  const has = chain && (chain.hops.length > 0 || chain.waiting);
  return html`
    <aside id="chain" class=${`chain ${drawer ? "drawer" : ""}`} data-open=${open} inert=${!open} aria-label="The chain of this answer">
      <header>
        <h2>The chain of this answer</h2>
        <button type="button" class="quiet square" ref=${close} aria-label="Close" onClick=${onClose}><${Icon} name="close" /></button>
      </header>
      ${has ? html`<${Hops} chain=${chain} running=${running} />` : html`<${Nothing} model=${model} running=${running} />`}
      <a class="chain-more" href="/swarm">See the whole swarm</a>
    </aside>
  `;
}

function Hops({ chain, running }) {
  const total = chain.hops.reduce((sum, hop) => sum + hop.end - hop.start, 0) || 1;
  const slowest = Math.max(...chain.hops.map((hop) => hop.ms ?? 0), 1e-9);
  const step = chain.ms ? ` · ${milliseconds(chain.ms)} a token` : "";
  return html`
    <p class="chain-sum">${count(chain.hops.length, "hop")} · ${count(total, "block")}${step}</p>
    <div class="strip" aria-hidden="true">
      ${chain.hops.map((hop, i) => html`<i key=${i} data-tint=${i % 4} style=${{ flexGrow: hop.end - hop.start }}></i>`)}
    </div>
    <ol class="hops" data-running=${running}>
      <li class="place"><b>You</b></li>
      ${chain.hops.map((hop, i) => html`<${Hop} key=${`${hop.start}:${hop.end} ${hop.peer}`} hop=${hop} tint=${i % 4} slowest=${slowest} />`)}
      <li class="place"><b>The next token</b></li>
    </ol>
    ${chain.waiting && html`<p class="waiting"><i class="turning"></i>${`Waiting: ${chain.waiting}`}</p>`}
    ${chain.moments.length > 0 && html`
      <h3>What happened</h3>
      <ul class="moments">${chain.moments.map((moment, i) => html`<li key=${i}>${moment.text}</li>`)}</ul>
    `}
  `;
}

function Hop({ hop, tint, slowest }) {
  return html`
    <li class="hop" data-tint=${tint} data-lost=${hop.lost ?? false} data-fresh=${hop.fresh ?? false}>
      <b>${hop.name}</b>
      <span class="hop-blocks">${`blocks ${hop.start}:${hop.end}`}</span>
      <span class="hop-ms">${hop.lost ? "lost" : hop.ms === null ? "" : milliseconds(hop.ms)}</span>
      <span class="hop-bar" aria-hidden="true"><i style=${{ width: `${(100 * (hop.ms ?? 0)) / slowest}%` }}></i></span>
    </li>
  `;
}

function Nothing({ model, running }) {
  if (running) return html`<p class="chain-sum"><i class="turning"></i>Finding peers for every block</p>`;
  return html`
    <p class="chain-none">
      ${model ? `The ${model.numBlocks} blocks of ${model.id} stand on different machines. ` : ""}When you ask something, the peers that
      compute each word appear here, with the time that each takes. If one leaves, another takes over its blocks, and no word is lost.
    </p>
  `;
}
