"""Reports that compare runs: a Markdown table, JSON, and a self-contained HTML page."""
