"""ScienceQA: ask, parse, score, join with an LLM's answers, report."""
