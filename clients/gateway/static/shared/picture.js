// The picture of the swarm, as the gateway draws it: /swarm.json, and its fields checked before anything is shown.

const number = (value, otherwise = 0) => (Number.isFinite(value) ? value : otherwise);
const array = (value) => (Array.isArray(value) ? value : []);
const text = (value) => (typeof value === "string" ? value : "");
const spans = (value) => array(value).map((s) => [number(s?.[0]), number(s?.[1])]).filter(([a, b]) => b > a);

const STATES = ["joining", "online", "draining", "paused", "standby", "offline"];

function peer(raw) {
  return {
    peer: text(raw?.peer_id),
    name: text(raw?.public_name),
    state: STATES.includes(raw?.state) ? raw.state : "offline",
    blocks: spans([raw?.blocks])[0] ?? [0, 0],
    throughput: number(raw?.throughput),
    cacheLeft: number(raw?.cache_left),
    queue: number(raw?.queue),
    precision: text(raw?.precision),
    version: text(raw?.version),
    reason: text(raw?.reason),
    announced: number(raw?.announced),
  };
}

function model(raw) {
  return {
    id: text(raw?.id) || text(raw?.model),
    names: array(raw?.names).map(text), // by which it can be asked, with its adapters too
    name: text(raw?.model),
    digest: text(raw?.digest),
    served: raw?.served === true,
    numBlocks: number(raw?.num_blocks),
    missing: spans(raw?.missing),
    weakest: spans(raw?.weakest),
    replication: array(raw?.replication).map((n) => number(n)),
    throughput: number(raw?.throughput),
    peers: array(raw?.peers).map(peer),
  };
}

export const picture = (raw) => ({ time: number(raw?.time), models: array(raw?.models).map(model) });

export async function readPicture(signal) {
  const response = await fetch("/swarm.json", { signal, cache: "no-store" });
  if (!response.ok) throw new Error(`the gateway answers ${response.status}`);
  return picture(await response.json());
}

export const online = (model) => model.peers.filter((peer) => peer.state === "online");
export const ready = (model) => model.numBlocks > 0 && model.missing.length === 0;
