"""The options of `reground-jax evaluate`."""

from typing import Any

from reground_jax.basics.options import (
    AMOUNTS,
    NAMES,
    NUMBERS,
    Option,
    read_gammas,
    read_items,
    read_number,
    read_numbers,
)
from reground_jax.cli import request
from reground_jax.cli.batch import add_share_options
from reground_jax.cli.data_sets import DATA_SETS, DROPS, EMOJI_LAYOUTS, PHRASES
from reground_jax.cli.options import add_option, add_options
from reground_jax.cli.parser import Parser
from reground_jax.cli.sampling import Setup
from reground_jax.evaluation.studies.conditions import ENDS, SINGLE

GAMMAS = (0, 0.3, 1)
BATCH_SIZE = 25
UNIT = 64  # layouts of a unit, at most, if that is at least two batches
STAGES = ("generate", "score", "report")
# Options of a study's images; images have the model's own size, which probes were trained on.
SETTINGS = ("num_steps", "guidance_scale", "guidance_interval", "solver", "eta", "dtype")
# Options that do not affect a study's numbers.
UNTOLD = (
    "cache", "no_cache", "out", "only", "plan", "rate", "pairs", "host_index", "host_count",
    "export", "calibrate", "answers",
)  # fmt: skip
COUPLINGS = Option(
    "also measure the wiring coupled with these couplings, as of generate --coupling: 0.5 between "
    "the two wirings, down=0,mid=0 by part of the U-Net. Separated by spaces, or by commas if none "
    "is by part. 0 and 1 are the two wirings, which are measured anyway",
    "C,...",
    read=read_items,
    name="--couplings",
    group="study",
    words=AMOUNTS,
)
GAMMAS_OF_MORE = Option(
    "gammas of --couplings and --attention-guidance (default: --gammas, without 0)",
    "G,...",
    read=read_gammas,
    name="--gammas-of-more",
    group="study",
    words=NUMBERS,
)
ATTENTION_GUIDANCE = Option(
    "also measure both wirings with these methods of attention guidance, as of generate "
    "--attention-guidance",
    "NAME,...",
    read=read_items,
    name="--attention-guidance",
    group="study",
    words=NAMES,
)
WIRINGS = Option(
    f"wirings to measure, of {', '.join((*ENDS, *SINGLE))}; the last three only on the main set of "
    "layouts and at the largest gamma (default: all)",
    "NAME,...",
    read=read_items,
    name="--wirings",
    group="study",
    words=NAMES,
)
SEEDS = Option(
    "seeds, for so many images of each layout; layouts of the built-in world have their own "
    "(default: 0)",
    "N,...",
    read=read_numbers,
    name="--seeds",
    group="study",
    words=NUMBERS,
)
DEFAULTS = "; ".join(f"{','.join(found.scorers)} of {name}" for name, found in DATA_SETS.items())
SCORER = Option(
    "what scores the images, as NAME or NAME=SOURCE, where SOURCE is a folder, a file or a Hub id: "
    "probes (of the built-in world); clip, pick (PickScore) and fid (Inception, also KID), which "
    "run on the device; detector (of transformers, or the probe: detector=probe); detections=FILE "
    "(of COCO's results form, made elsewhere). Images do not depend on them, so scorers may be "
    f"added later (default: {DEFAULTS})",
    "NAME=SOURCE,...",
    read=lambda text: [item for word in text.split() for item in word.split(",") if item],
    name="--scorers",
    group="study",
    words=r"[a-z][\w-]*=[^\s]*|[a-z]+(,[a-z]+)*",
)


def add_all(parser: Parser) -> None:
    _add_data_options(parser)
    _add_study_options(parser)
    _add_stage_options(parser)
    request.add_settings_options(parser, only=SETTINGS)
    add_options(parser, Setup, omit=("attention",), defaults={"batch_size": BATCH_SIZE})
    parser.group("hardware").add_argument(
        "--unit-lines", type=read_number, metavar="N",
        help="layouts of one unit, which is made and scored as a whole (default: as many batches "
        f"as fit {UNIT}, at least two)",
    )  # fmt: skip
    add_share_options(parser)
    parser.group("model").add_argument(
        "--parallel-model", metavar="DIR",
        help="a second model, trained under the parallel wiring (default: emoji-parallel with the "
        "default model, else none)",
    )  # fmt: skip
    parser.group("output").add_argument(
        "--out", default="evaluation", metavar="DIR",
        help="folder of the study, or a gs:// or s3:// URL (by fsspec) (default: evaluation)",
    )  # fmt: skip
    parser.alias("--out", "-o", "--output")


def _add_data_options(parser: Parser) -> None:
    group = parser.group("data set")

    def option(name: str, text: str, **keywords: Any) -> None:
        group.add_argument(name, help=text, **keywords)

    option(
        "--data", f"{' or '.join(DATA_SETS)} (default: emoji, the built-in world)",
        default="emoji", metavar="NAME",
    )  # fmt: skip
    option(
        "--layouts", "how many layouts, the first ones of the data set; with more of them, a study "
        f"goes on (default: {EMOJI_LAYOUTS} of the 1000 of the built-in world, all of others)",
        metavar="N", type=read_number,
    )  # fmt: skip
    parser.alias("--layouts", "--limit")
    option("--annotations", "COCO's instances_*.json", metavar="FILE")
    option("--captions", "COCO's captions_*.json of the same split", metavar="FILE")
    option(
        "--photographs", "the folder of COCO's images, which are scored, too: they show what is "
        "attainable, and fid compares with them", metavar="DIR",
    )  # fmt: skip
    option(
        "--drop", "of COCO: also measure COCO-Drop, where half of the categories lose their boxes: "
        f"rounded down (floor, the default), up (ceil), or {DROPS[2]} category by itself with "
        "probability 1/2",
        nargs="?", const=DROPS[0], metavar="HOW",
    )  # fmt: skip
    option(
        "--phrases", "of COCO and NSR-1K: what grounds a category, article (a dog, the default) or "
        f"{PHRASES[1]} (dog)", metavar="KIND",
    )  # fmt: skip
    option(
        "--nsr1k", "also measure layouts of NSR-1K: LayoutGPT's gpt4.counting.*.json; with COCO, "
        "LAYOUTS=PROMPTS, the prompts being counting.val.json or spatial.val.json. May be repeated",
        action="append", default=[], metavar="FILES",
    )  # fmt: skip
    option(
        "--rich-phrases", "of the built-in world: also name tints and poses in the phrases, to "
        "test whether plain phrases explain a result", action="store_true",
    )  # fmt: skip


def _add_study_options(parser: Parser) -> None:
    request.add_variants(
        parser, "gammas", "study",
        "fractions 0..1 of the steps, counted from the first, in which the boxes are used (gamma "
        f"in ReGround's paper) (default: {','.join(map(str, GAMMAS))})",
    )  # fmt: skip
    add_option(parser, "wirings", WIRINGS)
    add_option(parser, "couplings", COUPLINGS)
    add_option(parser, "guidances", ATTENTION_GUIDANCE)
    add_option(parser, "gammas_of_more", GAMMAS_OF_MORE)
    add_option(parser, "seeds", SEEDS)
    add_option(parser, "scorers", SCORER)
    parser.group("study").add_argument(
        "--gate-scale", type=read_number, default=1.0, metavar="S",
        help="multiplies the gates (the strength) of the layers that read boxes, to test whether "
        "weak gates explain a result (default: 1.0)",
    )  # fmt: skip


def _add_stage_options(parser: Parser) -> None:
    group = parser.group("steps")
    group.add_argument(
        "--plan", action="store_true",
        help="only say how many images are to be made, what they take, and what is missing",
    )  # fmt: skip
    group.add_argument(
        "--rate", type=read_number, metavar="TFLOPS",
        help="TFLOP/s that the hardware reaches, for the hours of --plan (default: as measured in "
        "an earlier run of the study)",
    )  # fmt: skip
    group.add_argument(
        "--only", metavar="STEP",
        help=f"do only one step: {', '.join(STAGES)} (default: all of them in turn)",
    )  # fmt: skip
    group.add_argument(
        "--calibrate", action="store_true",
        help="instead of a report, choose the CLIP and the rules of AP that come nearest to the "
        "paper, and use them from now on: with --wirings sequential --gammas 0.1,1, before other "
        "wirings are scored",
    )  # fmt: skip
    group.add_argument(
        "--export", metavar="DIR",
        help="only write the layouts in COCO's form, with the study's images and photographs if "
        "all images are made, for detectors of your own (--scorers detections=FILE)",
    )  # fmt: skip
    group.add_argument(
        "--pairs", type=read_number, metavar="N",
        help="also write a page of N pairs of images for people to compare blindly",
    )  # fmt: skip
    group.add_argument(
        "--answers", action="append", default=[], metavar="FILE",
        help="only count the answers that someone saved on that page, and say how often each "
        "wiring was chosen. May be repeated, for several people",
    )  # fmt: skip
