"""The card, the figures and the page, from records only. No torch."""
