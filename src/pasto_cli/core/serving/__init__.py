"""A dial in every request: engines that decode, and the HTTP interface before them."""
