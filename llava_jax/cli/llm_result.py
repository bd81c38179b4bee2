"""What the verbs that query a chat model print when its replies are complete."""

from llava_jax.llm_client.settings import LLMSettings
from llava_jax.output.console import log

MAX_LISTED = 20  # failed requests


def log_result(result, settings: LLMSettings) -> None:
    """Logs the counts, tokens, cost and failures of an `LLMResult`."""
    replies = result.replies.values()
    refused, truncated = sum(r.is_refused for r in replies), sum(r.finish == "length" for r in replies)
    log(
        f"{len(replies):,} answered, {result.new_count:,} of them new; {refused:,} refused or empty, "
        f"{truncated:,} cut at {settings.max_tokens:,} tokens; {len(result.failed):,} failed"
    )
    counts = [sum(getattr(r, name) or 0 for r in replies) for name in ("input_tokens", "output_tokens")]
    log(f"{counts[0]:,} input and {counts[1]:,} output tokens" + _cost_text(result, settings))
    for name, reason in list(result.failed.items())[:MAX_LISTED]:
        log(f"  {name}: {reason}")
    if len(result.failed) > MAX_LISTED:
        log(f"  and {len(result.failed) - MAX_LISTED:,} more")
    if result.failed:
        log("run the same command to retry these")


def _cost_text(result, settings: LLMSettings) -> str:
    if settings.input_price is None:
        return ""
    lost = f", and up to ${result.lost:.4f} for tries without a reply" if result.lost else ""
    return f": ${result.spent:.4f}{lost}"
