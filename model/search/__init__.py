"""Search for the settings with which a network predicts unseen sequences best.

`space` chooses what is searched by the data, `trials` measures one choice, `study` runs
Optuna over them, `folder` keeps what can be resumed, `report` writes what came out.
"""
