"""The dashboard: Gradio tabs over ctplab's public API, one file a tab. No mathematics here, no torch."""
