"""The prose of the page of benchmarks/tournament.py."""

# ruff: noqa: E501, as these are lines of the page

TITLE = "# A tournament of byte-level models on equal terms"
CLAIMS = """Papers claim that at equal compute MambaByte is ahead of gated S4D and MegaByte, and that gated S4D and MegaByte are ahead of
Transformers and Perceiver AR ([arXiv 2401.13660](https://arxiv.org/abs/2401.13660), tables 1 and 2, figure 1), and that H-Net is ahead of
SpaceByte ([arXiv 2507.07955](https://arxiv.org/abs/2507.07955), table 2). Here these models and an LSTM are tuned and trained on the same terms."""
HOW = """This page is written by
```bash
python benchmarks/tournament.py --books FOLDER --out docs/benchmarks{page}{options}
python benchmarks/long_context.py --out docs/benchmarks{page}
```
and, from the figures in [{results}]({link}{results}), [{curves}]({link}{curves}) and {lengths} alone, by the first with `--page`.
FOLDER has parquet files in PG19's schema; `code` is the standard library of the Python that runs (`data=stdlib`). The search space is in
[tournament_space.py]({root}benchmarks/tournament_space.py), the search in [tournament_search.py]({root}benchmarks/tournament_search.py).{changed}"""
CHANGED = " The ranges have changed since these runs, so the commands make others now."
GPU = """## On a GPU
The same with models of some 60 million parameters on PG19 and, as code, on `data=code`; and of some 350 million (*not run yet*):
```bash
python benchmarks/tournament.py --size 60m --processes 1 --runs runs/tournament_60m --out OUT
python benchmarks/tournament.py --size 350m --processes 1 --runs runs/tournament_350m --out OUT
```
They tune and compare in the same way, with the ranges and budgets of their row in
[tournament_space.py]({root}benchmarks/tournament_space.py); `--books FOLDER` trains on a copy of PG19's parquet files."""
LIMITS = """## What this shows, and what it does not
- {terms} The search begins on the first corpus, at points that are the same for all models, and goes on by single steps from a model's
  best point. Then the corpora take turns, and each begins at the model's best point on the other: so equal settings on both are no two
  findings.
- What only one model has is not searched: MambaByte's states and MegaByte's patches are as in their YAML, Perceiver AR has a
  quarter of the context as latents, and MegaByte and SpaceByte have no more positions than the context.
- There is no band of parameters: at equal compute, a model's size is one of the things it may choose. The width of MegaByte,
  SpaceByte and H-Net is that of their layers over bytes; their layers over patches or chunks are 1.5 times as wide. Of MegaByte's
  and SpaceByte's depth one half is over bytes and one over patches; H-Net has half its depth before, within and after its chunks. So
  the least depth is 2.
- Compute is counted as in [models.md]({docs}models.md#flops-per-byte): attention with a whole context of keys, although causality
  halves it; SpaceByte and H-Net with the bytes per chunk that their YAML expects{measured}.
- Equal time asks the machine instead, and so the kernels. Its runs have the best points of equal compute, which are not tuned
  again{warmup}.
- The best point of a short trial need not be the best of a longer run, least for models that learn slowly at first. Where most of
  the best points lie at the same end of a range, a wider range might have helped those models.
- So few trials of five settings leave much to chance: another search of the same size may find a better point for one model and a
  worse one for another, and it has moved a model by tenths. Small differences mean little, whatever the seeds of the best points say.{history}
- A model is measured in windows of the context it chose (`disjoint`); `stateful` carries the state of a recurrent model
  through each document, which no other model here can do.
- Trials are judged on a sample of the split that the runs are measured on, which flatters all of them. So is the figure; its windows
  have the context of the model, so models of different contexts are judged on different samples, and the tables may order them otherwise.
- The models are small and see a few megabytes: nothing here says how they compare at a hundred times the size.
"""
HISTORY = """
  Searches before this one: one of other ranges, with steps from 2,048 bytes and Optuna's sampler, had gated S4D ahead of MambaByte on
  code, 1.913 against 1.929 bits per byte after 2e12 FLOPs. One that never told code what the last trials on books found had the
  Transformer at 2.567 and SpaceByte at 2.203 there, at equal compute; a review noticed, and the search was changed. Of this one it is known
  that it missed a gated S4D (32 x 2, learning rate 0.0162, 512 bytes a step, context 128) with 1.986 on code at equal compute, one seed."""
