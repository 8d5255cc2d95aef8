// The picture as it changes, over server-sent events, while the page is looked at.
import { useEffect, useState } from "../shared/view.js";
import { picture } from "../shared/picture.js";

// {picture, lost}: `lost` while there is no connection; the browser tries again by itself.
export function useLive() {
  const [state, setState] = useState({ picture: null, lost: false });
  useEffect(() => {
    let source = null;
    let again;
    const close = () => {
      clearTimeout(again);
      source?.close();
      source = null;
    };
    const open = () => {
      close();
      source = new EventSource("/swarm/events");
      source.onmessage = (event) => setState({ picture: picture(JSON.parse(event.data)), lost: false });
      source.onerror = () => {
        setState((before) => ({ ...before, lost: true }));
        if (source?.readyState === EventSource.CLOSED) again = setTimeout(open, 3000); // refused: not tried by itself
      };
    };
    const seen = () => (document.hidden ? close() : open());
    document.addEventListener("visibilitychange", seen);
    open();
    return () => {
      document.removeEventListener("visibilitychange", seen);
      close();
    };
  }, []);
  return state;
}
