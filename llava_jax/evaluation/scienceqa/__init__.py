"""ScienceQA: prompts, parser, scores, ensembles with an LLM's answers, report."""
