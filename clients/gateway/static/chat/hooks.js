// What the page listens to: the gateway, the window's width, the keyboard.
import { useEffect, useRef, useState } from "../shared/view.js";
import { readPicture, ready } from "../shared/picture.js";
import { Failure, readModels } from "./api.js";

const CALM = 8000; // ms between two looks at a swarm that is well
const SOON = 2000; // and at one that isn't

// {models, picture, lost, keyWanted, refresh}: asked for again and again while the page is visible.
export function useGateway() {
  const [state, setState] = useState({ models: null, picture: null, lost: false, keyWanted: false });
  const refresh = useRef(() => {});
  useEffect(() => {
    const end = new AbortController();
    let timer;
    let models = null;
    const look = async () => {
      clearTimeout(timer);
      const found = await readAll(models, end.signal);
      if (end.signal.aborted) return;
      models = found.models ?? models;
      setState((before) => ({ ...before, ...found, models, picture: found.picture ?? before.picture }));
      const well = !found.lost && !found.keyWanted && found.picture?.models.every(ready);
      clearTimeout(timer); // of another look that ended meanwhile
      if (!document.hidden) timer = setTimeout(look, well ? CALM : SOON);
    };
    const seen = () => !document.hidden && look();
    refresh.current = () => ((models = null), look());
    document.addEventListener("visibilitychange", seen);
    look();
    return () => {
      end.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, []);
  return { ...state, refresh: refresh.current };
}

// The picture, and the names of models unless it still has those that are known; asking for them may need a key.
async function readAll(known, signal) {
  const asked = known ? null : askModels(signal);
  const picture = await readPicture(signal).catch(() => null);
  if (!picture) return { picture, lost: true };
  const names = picture.models.flatMap((model) => model.names);
  const same = known?.length === names.length && names.every((name) => known.includes(name));
  return { picture, lost: false, ...(same ? {} : await (asked ?? askModels(signal))) };
}

async function askModels(signal) {
  try {
    return { models: await readModels(signal), keyWanted: false };
  } catch (error) {
    return { keyWanted: error instanceof Failure && [401, 403].includes(error.status) };
  }
}

export function useSize(query) {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const list = matchMedia(query);
    const changed = () => setMatches(list.matches);
    list.addEventListener("change", changed);
    return () => list.removeEventListener("change", changed);
  }, []);
  return matches;
}

// `keys`: "alt+KeyN" (where the key is) or "?" (what it types) -> what to do. Plain characters only count outside of fields, nothing counts under a dialog.
export function useShortcuts(keys) {
  const current = useRef(keys);
  current.current = keys;
  useEffect(() => {
    const pressed = (event) => {
      if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
      const typing = event.target.closest?.("input, textarea, select");
      const act = current.current[event.altKey ? `alt+${event.code}` : event.key];
      if (!act || event.ctrlKey || event.metaKey || (typing && event.key.length === 1 && !event.altKey)) return;
      if (event.key !== "Escape") event.preventDefault();
      act();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}
