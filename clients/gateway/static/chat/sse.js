// Server-sent events of a response, comments included: {data} or {comment}, one at a time.

const LONGEST = 4 << 20; // characters without a line's end; more is no stream of ours

export async function* readEvents(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      if (rest.length > LONGEST) throw new Error("a line of the stream never ends");
      for (const line of lines) {
        if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
        else if (line.startsWith("data:")) yield { data: line.slice(5).trim() };
      }
    }
  } catch (error) {
    if (signal?.aborted || error.name === "AbortError") throw error;
    return; // broken off: whoever reads knows by the missing end
  } finally {
    reader.cancel().catch(() => {});
  }
}
