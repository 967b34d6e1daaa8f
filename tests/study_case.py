"""A study of tiny models: two arms, two seeds."""

import yaml


def write_study(folder, settings, prompt_file, **changes):
    """A study's file in `folder`, with changes such as seeds=[0]."""
    recipe = folder / "tiny.yaml"
    tiny = {"steps": 2, "minibatch": None, "gate": {"spans": "none"}, "checkpoint": {"every": 1}}
    recipe.write_text(yaml.safe_dump(settings | tiny))
    values = {
        "common": {"diagnostics": {"every": 0}},
        "varies": ["gate"],
        "base": "none",
        "arms": {
            "none": {"recipe": str(recipe)},
            "gated": {"recipe": str(recipe), "settings": {"gate": {"spans": "block", "size": 8, "tau": 50.0}}},
        },
        "seeds": [0, 1],
        "exam": {"benchmarks": [str(prompt_file)], "samples": 2, "max_new_tokens": 8},
        "measures": ["pass@1"],
        "claims": [{"arm": "gated", "text": "gates help"}],
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path
