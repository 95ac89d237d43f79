"""The benchmarks of Gandhi et al. (2025), one command each, beside baselines.

    python -m benchmarks.paper.msigdb --model 3b --data DIR
    python -m benchmarks.paper.depmap --model 3b --data DIR
    python -m benchmarks.paper.tabula_sapiens --model 3b --data DIR
    python -m benchmarks.paper.state_transition --model 3b --data DIR

Run them from the top of a checkout. Each says which files it needs and where they are, checks them before it loads a
model, keeps what it has computed in DIR/results, and goes on from there when it is called again. With the demo model
and a few cells of your own it shows that all is in place before a GPU is asked for; in minutes, but for msigdb, which
trains 24 networks for each of six kinds of vectors and three seeds.

The figures of the authors are in their paper. They are not repeated here: nobody has compared them yet with what these
commands print for the released weights.
"""
