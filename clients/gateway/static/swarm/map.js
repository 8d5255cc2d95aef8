// Blocks across, peers down. The top row counts how many online peers hold each block; below, each peer's span is a bar.
import { html } from "../shared/view.js";
import { figure, peerName, plain, shortId } from "../shared/words.js";

const MOST_PEERS = 300; // rows; more are counted only
const TICKS = 8;

export function Map({ model }) {
  const shown = model.peers.slice(0, MOST_PEERS);
  const more = model.peers.length - shown.length;
  return html`
    <div class="map">
      <div class="row axis" aria-hidden="true">
        <span class="who">Block</span>
        <div class="track">${ticks(model.numBlocks).map((at) => html`<span key=${at} class="tick" style=${{ left: `${(100 * at) / model.numBlocks}%` }}>${at}</span>`)}</div>
      </div>
      <${Replication} model=${model} />
      <ul class="peers" aria-label=${`Peers of ${model.id}`}>
        ${shown.map((peer) => html`<${Peer} key=${peer.peer} peer=${peer} model=${model} />`)}
      </ul>
      ${more > 0 && html`<p class="more">${`and ${more.toLocaleString("en")} more peers`}</p>`}
    </div>
  `;
}

function Replication({ model }) {
  const weak = new Set(model.weakest.flatMap(([start, end]) => Array.from({ length: end - start }, (_, i) => start + i)));
  const wide = model.numBlocks > 48;
  const words = runs(model.replication)
    .map(([start, end, n]) => `${start}:${end} on ${n}`)
    .join(", ");
  const slow = model.weakest.map(([start, end]) => `${start}:${end}`).join(", ");
  return html`
    <div class="row" role="img" aria-label=${`Online peers on each block: ${words}. Weakest: ${slow}.`}>
      <span class="who">Online peers on it</span>
      <div class="track cells" data-wide=${wide}>
        ${model.replication.map((n, block) => html`<span key=${block} data-count=${Math.min(n, 4)} data-weak=${weak.has(block)} title=${`block ${block}: ${n} online`}>${wide ? "" : n}</span>`)}
      </div>
      <span class="facts">${slow && model.missing.length === 0 ? html`<i class="weak-mark"></i>weakest ${slow}` : ""}</span>
    </div>
  `;
}

function Peer({ peer, model }) {
  const [start, end] = peer.blocks;
  const name = peerName(peer);
  const place = { left: `${(100 * start) / model.numBlocks}%`, width: `${(100 * (end - start)) / model.numBlocks}%` };
  const load = peer.queue > 0 ? `${peer.queue.toLocaleString("en")} waiting` : "idle";
  return html`
    <li class="row peer" data-state=${peer.state} title=${plain(peer.reason, 200)}>
      <span class="who"><b>${name}</b><small>${`…${shortId(peer.peer)}`}</small></span>
      <div class="track"><span class="bar" style=${place}><span>${`${start}:${end}`}</span></span></div>
      <span class="facts">
        ${peer.state === "online"
          ? html`<span>${`${figure(peer.throughput)} tok/s`}</span><span>${load}</span><span>${plain(peer.precision, 16)}</span>`
          : html`<span class="flag">${peer.state}</span><span>${plain(peer.precision, 16)}</span>`}
      </span>
    </li>
  `;
}

function ticks(blocks) {
  const step = [1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100].find((size) => blocks / size <= TICKS) ?? Math.ceil(blocks / TICKS);
  return Array.from({ length: Math.ceil(blocks / step) }, (_, i) => i * step);
}

// [start, end, count] of neighbours with the same count.
function runs(counts) {
  const found = [];
  counts.forEach((n, block) => {
    const last = found.at(-1);
    if (last?.[2] === n) last[1] = block + 1;
    else found.push([block, block + 1, n]);
  });
  return found;
}
