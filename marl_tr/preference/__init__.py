"""Learning from preferences, scored groups, levels and demonstrations, with the package's own learners and Guard.

`LOSSES` lists what can be learned; `marl_tr.preference.trainer.PreferenceTrainer` learns it;
`marl_tr.preference.sampling` makes the data from an environment or a finished run. See ``docs/preferences.md``.
"""

from marl_tr.registry import Entry

__all__ = ["LOSSES"]

_HERE = "marl_tr.preference"

LOSSES = {
    "adpo": Entry(
        target=f"{_HERE}.adpo:Adpo",
        config=f"{_HERE}.config:AdpoConfig",
        summary="scored groups: softmax of log-ratios to an anchor against a target (anchored DPO)",
    ),
    "tr_dpo": Entry(
        target=f"{_HERE}.tr_dpo:TrDpo",
        config=f"{_HERE}.config:TrDpoConfig",
        summary="pairs: DPO whose reference follows the policy (trust-region DPO)",
    ),
    "trpa": Entry(
        target=f"{_HERE}.trpa:Trpa",
        config=f"{_HERE}.config:TrpaConfig",
        summary="levels: every pair across levels of a group, and a pull to the old policy (TRPA)",
    ),
    "trsft": Entry(
        target=f"{_HERE}.trsft:Trsft",
        config=f"{_HERE}.config:TrsftConfig",
        summary="demonstrations: likelihood whose gradient fades where the policy disagrees (TrSFT)",
    ),
    "psft": Entry(
        target=f"{_HERE}.psft:Psft",
        config=f"{_HERE}.config:PsftConfig",
        summary="demonstrations: PPO's clip with advantage 1 (proximal SFT)",
    ),
    "erpd": Entry(
        target=f"{_HERE}.erpd:Erpd",
        config=f"{_HERE}.config:ErpdConfig",
        summary="a teacher's log-ratio to the base policy as advantage (second stage of ERPD)",
    ),
}
"""The losses by name, as the listings of regions have them: ``load_config()`` says paper, status and settings."""
