"""Questions to a chat model over an OpenAI-compatible server: cached, retried, priced, live or as a batch."""

from mplus_cli.data.chat.asking import Asked, ask_all, ask_visibly
from mplus_cli.data.chat.backend import Backend, ChatSettings, open_backend
from mplus_cli.data.chat.cache import AnswerCache
from mplus_cli.data.chat.cost import Budget, Price, Purse, Usage, load_price
from mplus_cli.data.chat.planning import DryRun, Plan
from mplus_cli.data.chat.requests import Answer, ChatRequest

__all__ = [
    "Answer",
    "AnswerCache",
    "Asked",
    "Backend",
    "Budget",
    "ChatRequest",
    "ChatSettings",
    "DryRun",
    "Plan",
    "Price",
    "Purse",
    "Usage",
    "ask_all",
    "ask_visibly",
    "load_price",
    "open_backend",
]
