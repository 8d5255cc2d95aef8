"""What a model says as the items of a response, and the events that tell of them."""

import secrets
from collections.abc import Iterator
from typing import Any

from clients.gateway.chatting import CallBegan, CallGoesOn, Ended, Text
from clients.gateway.conversation import ToolCall, Turn

__all__ = ["Event", "Output"]

Event = dict[str, Any]


class Output:
    """The items of one response, as they grow: messages and calls, in the order in which the model made them."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False  # whether the last one may grow

    @property
    def turn(self) -> Turn:
        """All of it, as a turn of a chat."""
        text = "".join(item["content"][0]["text"] for item in self.items if item["type"] == "message")
        calls = [item for item in self.items if item["type"] == "function_call"]
        return Turn("assistant", text, tuple(ToolCall(c["call_id"], c["name"], c["arguments"]) for c in calls))

    def take(self, happened: Text | CallBegan | CallGoesOn | Ended) -> Iterator[Event]:
        """The events of what happened."""
        match happened:
            case Text(text=text):
                yield from self._say(text) if text else ()
            case CallBegan():
                yield from self._begin(
                    "function_call", "fc", call_id=happened.id, name=happened.name, arguments="", status="in_progress"
                )
            case CallGoesOn(text=text):
                self.items[-1]["arguments"] += text
                yield self._event("function_call_arguments.delta", delta=text)
            case Ended():
                yield from self._end("incomplete" if happened.reason == "length" else "completed")

    def _say(self, text: str) -> Iterator[Event]:
        if not self._open or self.items[-1]["type"] != "message":
            yield from self._begin("message", "msg", status="in_progress", role="assistant", content=[])
            self.items[-1]["content"] = [_part("")]
            yield self._event("content_part.added", content_index=0, part=_part(""))
        self.items[-1]["content"][0]["text"] += text
        yield self._event("output_text.delta", content_index=0, delta=text, logprobs=[])

    def _begin(self, kind: str, prefix: str, **more: Any) -> Iterator[Event]:
        yield from self._end("completed")
        self._open = True
        self.items.append({"id": f"{prefix}_{secrets.token_hex(12)}", "type": kind, **more})
        yield self._item_event("added")

    def _end(self, status: str) -> Iterator[Event]:
        """The last item is complete, or will never be."""
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            yield self._event("output_text.done", content_index=0, text=part["text"], logprobs=[])
            yield self._event("content_part.done", content_index=0, part=dict(part))
        else:
            name, arguments = item["name"], item["arguments"]
            yield self._event("function_call_arguments.done", name=name, arguments=arguments)
        yield self._item_event("done")

    def _event(self, kind: str, **more: Any) -> Event:
        at = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **at, **more}

    def _item_event(self, kind: str) -> Event:
        item = dict(self.items[-1])
        return {"type": f"response.output_item.{kind}", "output_index": len(self.items) - 1, "item": item}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
