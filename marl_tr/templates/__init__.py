"""What ``marl-tr new-env`` copies: packages with one environment, one module a kind.

These are modules as any other: linted, type-checked, and tested as they lie here. A copy gets the user's name wherever
`new_environment` or `NewEnvironment` stands.
"""
