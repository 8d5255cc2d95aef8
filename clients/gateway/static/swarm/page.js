// The whole swarm: each model with its blocks across and its peers down.
import { html } from "../shared/view.js";
import { Mark } from "../shared/icons.js";
import { ThemeSwitch } from "../shared/colours.js";
import { blocks, count, figure } from "../shared/words.js";
import { online, ready } from "../shared/picture.js";
import { useLive } from "./live.js";
import { Map } from "./map.js";

export function Page() {
  const { picture, lost } = useLive();
  return html`
    <header class="top">
      <a class="brand" href="/" aria-label="swarm: to the chat"><${Mark} />swarm</a>
      <span class="spread"></span>
      <span class="live" role="status" data-lost=${lost}><i></i>${lost ? "not connected, trying again" : picture ? "live" : "looking"}</span>
      <${ThemeSwitch} />
    </header>
    <main class="page">
      <h1>The swarm</h1>
      ${!picture && html`<p class="lead">${lost ? "The gateway can't be reached. Trying again by itself." : "Looking who is there."}</p>`}
      ${picture && !picture.models.length && html`<p class="lead">This gateway serves no model.</p>`}
      ${picture?.models.map((model) => html`<${Model} key=${model.id} model=${model} />`)}
      <footer class="page-foot"><a href="/">To the chat</a><a href="/swarm.json">The same as JSON</a></footer>
    </main>
  `;
}

function Model({ model }) {
  const there = online(model);
  const least = Math.min(...model.replication);
  const id = `model-${model.digest}`;
  return html`
    <section class="model" aria-labelledby=${id}>
      <div class="model-head">
        <h2 id=${id}>${model.id}</h2>
        <p class="state" data-state=${ready(model) ? (least > 1 ? "good" : "warn") : "bad"}>${standing(model, least)}</p>
      </div>
      <dl class="figures">
        <div><dt>Peers online</dt><dd>${there.length}</dd></div>
        <div><dt>Blocks</dt><dd>${model.numBlocks}</dd></div>
        <div><dt>Tokens a second, all streams</dt><dd>${ready(model) ? figure(model.throughput) : "–"}</dd></div>
        <div><dt>Precision</dt><dd>${[...new Set(there.map((peer) => peer.precision))].slice(0, 3).join(", ") || "–"}</dd></div>
      </dl>
      ${model.numBlocks > 0 && html`<${Map} model=${model} />`}
    </section>
  `;
}

// How safe the model is, in a sentence.
function standing(model, least) {
  if (!model.peers.length) return "Nobody serves it now.";
  if (!ready(model)) return `${capital(blocks(model.missing))} ${model.missing.length > 1 || model.missing[0][1] - model.missing[0][0] > 1 ? "are" : "is"} missing: no answers until a peer brings them.`;
  if (least === 1) return "Complete, but some blocks stand on one peer only.";
  return `Every block stands on ${count(least, "peer")}${least < Math.max(...model.replication) ? " or more" : ""}.`;
}

const capital = (words) => words[0].toUpperCase() + words.slice(1);
