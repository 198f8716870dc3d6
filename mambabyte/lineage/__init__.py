"""From state space models to S6 and the Mamba block, as a text that runs.

Each part is a module to be read from top to bottom: an equation in a comment, then the few lines that compute
it. What a comment claims as `>>>` is run, by the tests and when `page` makes the modules into one HTML page.

`ssm`, `hippo`, `s4`, `selection` and `block` are the text, `identities` what they claim, measured.
"""
