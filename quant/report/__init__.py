"""``gptoss-quant report``: an HTML page of an audit, with SVG charts."""
