// Figures and peers in words. What strangers chose (names, reasons) passes `plain` and is only ever put into text nodes.

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu; // moves, hides or reorders what stands around it

export function plain(text, limit = 80) {
  const shown = String(text ?? "").replace(/\s+/g, " ").trim().replace(UNSEEN, "\ufffd");
  return shown.length > limit ? `${[...shown].slice(0, limit).join("")}…` : shown;
}

export const shortId = (id) => plain(id, 80).slice(-8);
export const peerName = (peer) => plain(peer.name, 24) || `…${shortId(peer.peer)}`;
export const span = ([start, end]) => `${start}:${end}`;

export function seconds(value) {
  if (value < 0.01) return "under 0.01\u00a0s";
  if (value < 60) return `${Number(value.toPrecision(2))}\u00a0s`;
  return `${Math.round(value / 60)}\u00a0min`;
}

export const milliseconds = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);
export const figure = (value) => Number(value.toPrecision(3)).toLocaleString("en");
export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export function list(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

// Spans of blocks that nobody holds, as a sentence's subject.
export const blocks = (spans) => `${spans.length === 1 && spans[0][1] - spans[0][0] === 1 ? "block" : "blocks"} ${list(spans.map(span))}`;
