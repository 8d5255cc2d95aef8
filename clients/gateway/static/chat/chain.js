// The chain that computes one answer, and its moments, made from the gateway's comments. Pure.
//
// chain: {hops: [{peer, name, start, end, ms}], moments: [{kind, text, peers}], waiting: sentence or null, ms}
import { list, peerName, plain, seconds, shortId } from "../shared/words.js";

const MOST_HOPS = 512;
const MOST_MOMENTS = 50; // of one answer; older ones go

export const noChain = { hops: [], moments: [], waiting: null, ms: null };

// `nameOf` finds the name of a peer that the news name by its id only.
export function heard(chain, news, nameOf = () => "") {
  switch (news?.event) {
    case "chain":
      return changed(chain, news, nameOf);
    case "lost":
      return { ...chain, hops: chain.hops.map((hop) => (hop.peer === news.peer ? { ...hop, lost: true } : hop)) };
    case "waiting":
      return { ...chain, waiting: plain(news.reason, 200) || "nobody has room" };
    case "step":
      return timed(chain, news);
    default:
      return chain;
  }
}

function changed(chain, news, nameOf) {
  const before = new Map(chain.hops.map((hop) => [key(hop), hop]));
  const hops = (Array.isArray(news.hops) ? news.hops : []).slice(0, MOST_HOPS).map((raw) => {
    const hop = { peer: String(raw?.peer ?? ""), start: Number(raw?.blocks?.[0]), end: Number(raw?.blocks?.[1]) };
    const name = peerName({ peer: hop.peer, name: raw?.name || nameOf(hop.peer) });
    return { ...hop, name, ms: before.get(key(hop))?.ms ?? null, fresh: before.size > 0 && !before.has(key(hop)) };
  });
  const moment = chain.hops.length > 0 ? replaced(chain.hops, hops, news) : null;
  const moments = moment ? [...chain.moments, moment].slice(-MOST_MOMENTS) : chain.moments;
  return { hops, moments, waiting: null, ms: chain.ms };
}

const key = (hop) => `${hop.start}:${hop.end} ${hop.peer}`;

// "dora took over blocks 15:30 from carl, 0.2 s"
function replaced(before, after, news) {
  const old = new Set(before.map(key));
  const kept = new Set(after.map(key));
  const fresh = after.filter((hop) => !old.has(key(hop)));
  if (!fresh.length) return null;
  const lost = new Set(Array.isArray(news.lost) ? news.lost : []);
  const gone = before.filter((hop) => (lost.size ? lost.has(hop.peer) : !kept.has(key(hop))));
  const names = unique(fresh.map((hop) => hop.name));
  const from = gone.length ? ` from ${list(unique(gone.map((hop) => hop.name)))}` : "";
  const took = Number.isFinite(news.seconds) ? `, ${seconds(news.seconds)}` : "";
  const spans = list(fresh.map((hop) => `${hop.start}:${hop.end}`));
  return { kind: gone.length ? "replaced" : "moved", text: `${list(names)} took over blocks ${spans}${from}${took}` };
}

const unique = (words) => [...new Set(words)];

// A step's times are in the order of the hops, queue and compute apart.
function timed(chain, news) {
  const times = Array.isArray(news.hops) ? news.hops : [];
  if (times.length !== chain.hops.length) return { ...chain, ms: number(news.ms), waiting: null };
  const hops = chain.hops.map((hop, i) => ({ ...hop, ms: smooth(hop.ms, number(times[i]?.[0]) + number(times[i]?.[1])) }));
  return { ...chain, hops, ms: number(news.ms), waiting: null };
}

const number = (value) => (Number.isFinite(value) ? value : 0);
const smooth = (before, now) => (before === null ? now : before + (now - before) / 3);

export const finder = (models) => (id) =>
  models.flatMap((model) => model.peers).find((peer) => peer.peer === shortId(id))?.name ?? "";
