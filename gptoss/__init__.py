"""gpt-oss from the published checkpoint to a conversation.

The names below are the whole public API. Each is imported on first use: importing ``gptoss``, or
one of its packages, never loads another package, nor llama.cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss.converter.convert import Conversion as Conversion
    from gptoss.converter.convert import VerificationError as VerificationError
    from gptoss.converter.convert import convert as convert
    from gptoss.converter.convert import plan as plan
    from gptoss.converter.hub.client import HubError as HubError
    from gptoss.converter.hub.remote_file import HashMismatchError as HashMismatchError
    from gptoss.converter.options import ConvertOptions as ConvertOptions
    from gptoss.converter.plan import Plan as Plan
    from gptoss.errors import CheckpointError as CheckpointError
    from gptoss.errors import GgufError as GgufError
    from gptoss.errors import GptossError as GptossError
    from gptoss.errors import InvalidFileError as InvalidFileError
    from gptoss.errors import MissingPackageError as MissingPackageError
    from gptoss.errors import OptionError as OptionError
    from gptoss.errors import OutputError as OutputError
    from gptoss.errors import UnsupportedModelError as UnsupportedModelError
    from gptoss.library.memory import memory_plan as memory_plan
    from gptoss.quant.audit.auditor import Audit as Audit
    from gptoss.quant.audit.auditor import audit as audit
    from gptoss.quant.audit.findings import Finding as Finding
    from gptoss.quant.audit.findings import Severity as Severity
    from gptoss.quant.diff.differ import diff as diff
    from gptoss.quant.diff.result import Diff as Diff
    from gptoss.quant.info.summary import ModelInfo as ModelInfo
    from gptoss.quant.info.summary import info as info
    from gptoss.quant.report.reporter import report as report
    from gptoss.quant.verify.result import Verdict as Verdict
    from gptoss.quant.verify.verifier import verify as verify
    from gptoss.runtime.chat.async_stream import AsyncReplyStream as AsyncReplyStream
    from gptoss.runtime.chat.chat import Chat as Chat
    from gptoss.runtime.chat.events import ChatEvent as ChatEvent
    from gptoss.runtime.chat.events import HistoryShortened as HistoryShortened
    from gptoss.runtime.chat.events import ReasoningClosed as ReasoningClosed
    from gptoss.runtime.chat.events import Reply as Reply
    from gptoss.runtime.chat.events import ReplyEnded as ReplyEnded
    from gptoss.runtime.chat.events import StopReason as StopReason
    from gptoss.runtime.chat.events import TextLogprobs as TextLogprobs
    from gptoss.runtime.chat.events import ToolFinished as ToolFinished
    from gptoss.runtime.chat.events import ToolStarted as ToolStarted
    from gptoss.runtime.chat.full_context import ContextUsage as ContextUsage
    from gptoss.runtime.chat.full_context import WhenFull as WhenFull
    from gptoss.runtime.chat.model import Model as Model
    from gptoss.runtime.chat.model import load as load
    from gptoss.runtime.chat.model import open as open  # noqa: A004 the public name
    from gptoss.runtime.chat.options import ChatOptions as ChatOptions
    from gptoss.runtime.chat.reply_stream import ReplyStream as ReplyStream
    from gptoss.runtime.chat.settings import ChatError as ChatError
    from gptoss.runtime.chat.settings import Limits as Limits
    from gptoss.runtime.chat.settings import Settings as Settings
    from gptoss.runtime.embed.chat_stream import ChatDelta as ChatDelta
    from gptoss.runtime.embed.chat_stream import ChatStream as ChatStream
    from gptoss.runtime.embed.spawned import SpawnedServer as SpawnedServer
    from gptoss.runtime.embed.spawned import spawn as spawn
    from gptoss.runtime.embed.supervisor import ProcessState as ProcessState
    from gptoss.runtime.engine.base import EngineClosedError as EngineClosedError
    from gptoss.runtime.engine.base import EngineError as EngineError
    from gptoss.runtime.engine.base import ForkedProcessError as ForkedProcessError
    from gptoss.runtime.engine.base import ModelFileChangedError as ModelFileChangedError
    from gptoss.runtime.engine.base import OutOfMemoryError as OutOfMemoryError
    from gptoss.runtime.engine.base import PromptProgress as PromptProgress
    from gptoss.runtime.engine.base import PromptTooLongError as PromptTooLongError
    from gptoss.runtime.engine.base import QueueFullError as QueueFullError
    from gptoss.runtime.engine.base import RemoteError as RemoteError
    from gptoss.runtime.engine.base import RemoteUnreachableError as RemoteUnreachableError
    from gptoss.runtime.engine.base import RpcServerLostError as RpcServerLostError
    from gptoss.runtime.engine.base import TimeLimitError as TimeLimitError
    from gptoss.runtime.engine.base import Timings as Timings
    from gptoss.runtime.engine.cache_folder import CacheFolderError as CacheFolderError
    from gptoss.runtime.engine.saved_state import StateFileError as StateFileError
    from gptoss.runtime.engine.settings import EngineSettings as EngineSettings
    from gptoss.runtime.engine.settings import Lora as Lora
    from gptoss.runtime.harmony.errors import ConstraintError as ConstraintError
    from gptoss.runtime.harmony.errors import ConversationError as ConversationError
    from gptoss.runtime.harmony.errors import ConversationTooLongError as ConversationTooLongError
    from gptoss.runtime.harmony.events import Diagnostic as Diagnostic
    from gptoss.runtime.harmony.events import End as End
    from gptoss.runtime.harmony.events import MessageEnded as MessageEnded
    from gptoss.runtime.harmony.events import MessageStarted as MessageStarted
    from gptoss.runtime.harmony.events import RoundEnded as RoundEnded
    from gptoss.runtime.harmony.events import TextDelta as TextDelta
    from gptoss.runtime.harmony.message_json import messages_from_json as messages_from_json
    from gptoss.runtime.harmony.message_json import messages_to_json as messages_to_json
    from gptoss.runtime.harmony.messages import Effort as Effort
    from gptoss.runtime.harmony.messages import Message as Message
    from gptoss.runtime.harmony.messages import Role as Role
    from gptoss.runtime.models.memory_plan import MemoryPlan as MemoryPlan
    from gptoss.runtime.models.memory_plan import PlanVerdict as PlanVerdict
    from gptoss.runtime.models.placement import DeviceMemory as DeviceMemory
    from gptoss.runtime.sampling.grammar import JSON_OBJECT as JSON_OBJECT
    from gptoss.runtime.sampling.grammar import JsonSchema as JsonSchema
    from gptoss.runtime.sampling.grammar import Lark as Lark
    from gptoss.runtime.sampling.grammar import ReasoningStop as ReasoningStop
    from gptoss.runtime.sampling.grammar import Regex as Regex
    from gptoss.runtime.sampling.grammar import ToolChoice as ToolChoice
    from gptoss.runtime.sampling.logprobs import Alternative as Alternative
    from gptoss.runtime.sampling.logprobs import TokenLogprob as TokenLogprob
    from gptoss.runtime.sampling.parameters import Sampling as Sampling
    from gptoss.runtime.sampling.parameters import SamplingError as SamplingError
    from gptoss.runtime.store.errors import ConflictError as ConflictError
    from gptoss.runtime.store.errors import CorruptStoreError as CorruptStoreError
    from gptoss.runtime.store.errors import NotFoundError as NotFoundError
    from gptoss.runtime.store.errors import StoreError as StoreError
    from gptoss.runtime.store.errors import StoreFullError as StoreFullError
    from gptoss.runtime.tools.approval import Approval as Approval
    from gptoss.runtime.tools.approval import Decision as Decision
    from gptoss.runtime.tools.browser.fetch import FetchError as FetchError
    from gptoss.runtime.tools.browser.group import BrowserTool as BrowserTool
    from gptoss.runtime.tools.browser.search import Hit as Hit
    from gptoss.runtime.tools.cancel import CancelToken as CancelToken
    from gptoss.runtime.tools.functions import Tool as Tool
    from gptoss.runtime.tools.mcp.servers import McpServers as McpServers
    from gptoss.runtime.tools.python.group import PythonTool as PythonTool
    from gptoss.runtime.tools.python.session import PythonFolder as PythonFolder
    from gptoss.runtime.tools.python.session import PythonLimits as PythonLimits
    from gptoss.runtime.tools.python.session import PythonToolError as PythonToolError
    from gptoss.runtime.tools.toolbox import Toolbox as Toolbox
    from gptoss.runtime.tools.type_specs import ToolError as ToolError

__version__ = "0.1.0"

_NAMES = {
    "gptoss.converter.convert": (
        "Conversion",
        "VerificationError",
        "convert",
        "plan",
    ),
    "gptoss.converter.hub.client": ("HubError",),
    "gptoss.converter.hub.remote_file": ("HashMismatchError",),
    "gptoss.converter.options": ("ConvertOptions",),
    "gptoss.converter.plan": ("Plan",),
    "gptoss.errors": (
        "CheckpointError",
        "GgufError",
        "GptossError",
        "InvalidFileError",
        "MissingPackageError",
        "OptionError",
        "OutputError",
        "UnsupportedModelError",
    ),
    "gptoss.library.memory": ("memory_plan",),
    "gptoss.quant.audit.auditor": (
        "Audit",
        "audit",
    ),
    "gptoss.quant.audit.findings": (
        "Finding",
        "Severity",
    ),
    "gptoss.quant.diff.differ": ("diff",),
    "gptoss.quant.diff.result": ("Diff",),
    "gptoss.quant.info.summary": (
        "ModelInfo",
        "info",
    ),
    "gptoss.quant.report.reporter": ("report",),
    "gptoss.quant.verify.result": ("Verdict",),
    "gptoss.quant.verify.verifier": ("verify",),
    "gptoss.runtime.chat.async_stream": ("AsyncReplyStream",),
    "gptoss.runtime.chat.chat": ("Chat",),
    "gptoss.runtime.chat.events": (
        "ChatEvent",
        "HistoryShortened",
        "ReasoningClosed",
        "Reply",
        "ReplyEnded",
        "StopReason",
        "TextLogprobs",
        "ToolFinished",
        "ToolStarted",
    ),
    "gptoss.runtime.chat.full_context": (
        "ContextUsage",
        "WhenFull",
    ),
    "gptoss.runtime.chat.model": (
        "Model",
        "load",
        "open",
    ),
    "gptoss.runtime.chat.options": ("ChatOptions",),
    "gptoss.runtime.chat.reply_stream": ("ReplyStream",),
    "gptoss.runtime.chat.settings": (
        "ChatError",
        "Limits",
        "Settings",
    ),
    "gptoss.runtime.embed.chat_stream": (
        "ChatDelta",
        "ChatStream",
    ),
    "gptoss.runtime.embed.spawned": (
        "SpawnedServer",
        "spawn",
    ),
    "gptoss.runtime.embed.supervisor": ("ProcessState",),
    "gptoss.runtime.engine.base": (
        "EngineClosedError",
        "EngineError",
        "ForkedProcessError",
        "ModelFileChangedError",
        "OutOfMemoryError",
        "PromptProgress",
        "PromptTooLongError",
        "QueueFullError",
        "RemoteError",
        "RemoteUnreachableError",
        "RpcServerLostError",
        "TimeLimitError",
        "Timings",
    ),
    "gptoss.runtime.engine.cache_folder": ("CacheFolderError",),
    "gptoss.runtime.engine.saved_state": ("StateFileError",),
    "gptoss.runtime.engine.settings": (
        "EngineSettings",
        "Lora",
    ),
    "gptoss.runtime.harmony.errors": (
        "ConstraintError",
        "ConversationError",
        "ConversationTooLongError",
    ),
    "gptoss.runtime.harmony.events": (
        "Diagnostic",
        "End",
        "MessageEnded",
        "MessageStarted",
        "RoundEnded",
        "TextDelta",
    ),
    "gptoss.runtime.harmony.message_json": (
        "messages_from_json",
        "messages_to_json",
    ),
    "gptoss.runtime.harmony.messages": (
        "Effort",
        "Message",
        "Role",
    ),
    "gptoss.runtime.models.memory_plan": (
        "MemoryPlan",
        "PlanVerdict",
    ),
    "gptoss.runtime.models.placement": ("DeviceMemory",),
    "gptoss.runtime.sampling.grammar": (
        "JSON_OBJECT",
        "JsonSchema",
        "Lark",
        "ReasoningStop",
        "Regex",
        "ToolChoice",
    ),
    "gptoss.runtime.sampling.logprobs": (
        "Alternative",
        "TokenLogprob",
    ),
    "gptoss.runtime.sampling.parameters": (
        "Sampling",
        "SamplingError",
    ),
    "gptoss.runtime.store.errors": (
        "ConflictError",
        "CorruptStoreError",
        "NotFoundError",
        "StoreError",
        "StoreFullError",
    ),
    "gptoss.runtime.tools.approval": (
        "Approval",
        "Decision",
    ),
    "gptoss.runtime.tools.browser.fetch": ("FetchError",),
    "gptoss.runtime.tools.browser.group": ("BrowserTool",),
    "gptoss.runtime.tools.browser.search": ("Hit",),
    "gptoss.runtime.tools.cancel": ("CancelToken",),
    "gptoss.runtime.tools.functions": ("Tool",),
    "gptoss.runtime.tools.mcp.servers": ("McpServers",),
    "gptoss.runtime.tools.python.group": ("PythonTool",),
    "gptoss.runtime.tools.python.session": (
        "PythonFolder",
        "PythonLimits",
        "PythonToolError",
    ),
    "gptoss.runtime.tools.toolbox": ("Toolbox",),
    "gptoss.runtime.tools.type_specs": ("ToolError",),
}
"""The public names by the module they are imported from."""

_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "JSON_OBJECT",
    "Alternative",
    "Approval",
    "AsyncReplyStream",
    "Audit",
    "BrowserTool",
    "CacheFolderError",
    "CancelToken",
    "Chat",
    "ChatDelta",
    "ChatError",
    "ChatEvent",
    "ChatOptions",
    "ChatStream",
    "CheckpointError",
    "ConflictError",
    "ConstraintError",
    "ContextUsage",
    "ConversationError",
    "ConversationTooLongError",
    "Conversion",
    "ConvertOptions",
    "CorruptStoreError",
    "Decision",
    "DeviceMemory",
    "Diagnostic",
    "Diff",
    "Effort",
    "End",
    "EngineClosedError",
    "EngineError",
    "EngineSettings",
    "FetchError",
    "Finding",
    "ForkedProcessError",
    "GgufError",
    "GptossError",
    "HashMismatchError",
    "HistoryShortened",
    "Hit",
    "HubError",
    "InvalidFileError",
    "JsonSchema",
    "Lark",
    "Limits",
    "Lora",
    "McpServers",
    "MemoryPlan",
    "Message",
    "MessageEnded",
    "MessageStarted",
    "MissingPackageError",
    "Model",
    "ModelFileChangedError",
    "ModelInfo",
    "NotFoundError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "Plan",
    "PlanVerdict",
    "ProcessState",
    "PromptProgress",
    "PromptTooLongError",
    "PythonFolder",
    "PythonLimits",
    "PythonTool",
    "PythonToolError",
    "QueueFullError",
    "ReasoningClosed",
    "ReasoningStop",
    "Regex",
    "RemoteError",
    "RemoteUnreachableError",
    "Reply",
    "ReplyEnded",
    "ReplyStream",
    "Role",
    "RoundEnded",
    "RpcServerLostError",
    "Sampling",
    "SamplingError",
    "Settings",
    "Severity",
    "SpawnedServer",
    "StateFileError",
    "StopReason",
    "StoreError",
    "StoreFullError",
    "TextDelta",
    "TextLogprobs",
    "TimeLimitError",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolChoice",
    "ToolError",
    "ToolFinished",
    "ToolStarted",
    "Toolbox",
    "UnsupportedModelError",
    "Verdict",
    "VerificationError",
    "WhenFull",
    "__version__",
    "audit",
    "convert",
    "diff",
    "info",
    "load",
    "memory_plan",
    "messages_from_json",
    "messages_to_json",
    "open",
    "plan",
    "report",
    "spawn",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gptoss' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
