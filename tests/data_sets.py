"""Small data sets in the forms that people have files of."""

import json
from pathlib import Path

DOG, CAT, CAR, PERSON = 18, 17, 3, 1
NAMES = {DOG: "dog", CAT: "cat", CAR: "car", PERSON: "person"}


def write_coco(folder: Path, count: int = 6, *, captions: int | None = None) -> tuple[Path, Path]:
    """Files of `count` images of 200x100, each the same but for its id; its square is 50..150.

    A dog and a cat of a quarter of the square each, a car of under 1 %, a second car outside the
    square, and a crowd of people. captions: of how many images there are captions (default: all).
    """
    images, annotations, texts = [], [], []
    for number in range(1, count + 1):
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 200, "height": 100})
        boxes = [
            (DOG, [50, 0, 50, 50], 0), (CAT, [100, 50, 50, 50], 0), (CAR, [60, 60, 9, 9], 0),
            (CAR, [0, 0, 40, 40], 0), (PERSON, [60, 0, 50, 50], 1),
        ]  # fmt: skip
        for category, box, crowd in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": category,
                    "bbox": box, "iscrowd": crowd,
                }
            )  # fmt: skip
        texts.append({"id": number, "image_id": number, "caption": f"a dog and a cat, {number}"})
        texts.append({"id": 100 + number, "image_id": number, "caption": "another caption"})
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    told = texts if captions is None else texts[: 2 * captions]
    paths = folder / "instances_val2017.json", folder / "captions_val2017.json"
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps({"images": images, "annotations": told}))
    return paths


def write_nsr1k(folder: Path) -> dict[str, Path]:
    """counting and spatial.val.json, and GPT-4's layouts for each, in LayoutGPT's form."""
    counting = [
        {
            "id": 7, "image_id": 70, "prompt": "two dogs and a cat", "sub-type": "two-categories",
            "num_object": [["dog", 2], ["cat", 1]], "object_list": [["dog", [0, 0, 0.5, 0.5]]],
        },
        {
            "id": 8, "image_id": 80, "prompt": "two cars and fewer dogs", "sub-type": "comparison",
            "num_object": [["car", 2], ["dog", 1]], "object_list": [["car", [0, 0, 0.5, 0.5]]],
        },
    ]  # fmt: skip
    spatial = [
        {
            "id": 9, "image_id": 90, "prompt": "a potted plant to the left of a dog",
            "relation": "left", "obj1": ["potted plant", [0.0, 0.25, 0.25, 0.5]],
            "obj2": ["dog", [0.5, 0.25, 0.25, 0.5]], "type": "template",
        }
    ]  # fmt: skip
    left, right, low = [0, 0, 0.3, 0.3], [0.6, 0, 1, 0.4], [0.3, 0.6, 0.7, 1]
    layouts = [
        gpt4(7, 0, counting[0]["prompt"], dog=left, cat=right, Dog=low),
        gpt4(7, 1, counting[0]["prompt"], dog=left, cat=right, nightstand=low),
        gpt4(8, 0, counting[1]["prompt"], car=left, car_=right, dog=low),
    ]
    placed = [gpt4(9, 0, spatial[0]["prompt"], **{"potted-plant": left, "dog": right})]
    paths = {}
    for name, content in {
        "counting.val": counting, "spatial.val": spatial, "gpt4.counting": layouts,
        "gpt4.spatial": placed,
    }.items():  # fmt: skip
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(content))
    return paths


def gpt4(query: int, iteration: int, prompt: str, **objects: list[float]) -> dict:
    """Names are lowered, so that two keywords can name the same category."""
    pairs = [[name.lower(), box] for name, box in objects.items()]
    return {"query_id": query, "iter": iteration, "prompt": prompt, "object_list": pairs}
