"""Several stages as one file: what is done is not done again, what is wrong is said before anything runs."""

import pytest
import yaml

import attar
from attar.errors import AttarError, RecipeError
from attar.pipeline import read_pipeline, run

TRAINING = {
    "source": "digits",
    "backbone": "resnet8x0.5",
    "image_size": 8,
    "epochs": 1,
    "batch_size": 256,
    "progress": False,
}
STAGES = [
    {"name": "teacher", "pretrain": {**TRAINING, "method": "simclr"}},
    {
        "name": "student",
        "distill": {**TRAINING, "teacher": "teacher", "method": "seed", "settings": {"queue_length": 512}},
    },
    {"evaluate": {"run": "student", "labelled": "digits", "protocols": ["knn"], "controls": False, "progress": False}},
    {"report": {"runs": ["student", "teacher"], "out": "report.html"}},
]


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_all_stages_then_nothing_then_only_what_changed(tmp_path):
    recipe = {"out": str(tmp_path / "out"), "stages": STAGES}
    file = write(tmp_path / "recipe.yaml", recipe)
    first = run(file)
    assert first.ran == ["teacher", "student", "evaluate", "report"] and len(first.verdicts) == 1
    assert (tmp_path / "out" / "student" / "evaluation.json").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    assert run(file).ran == []
    recipe["stages"] = [*STAGES[:2], {"evaluate": {**STAGES[2]["evaluate"], "protocols": ["knn", "linear"]}}, STAGES[3]]
    assert run(write(file, recipe)).ran == ["evaluate", "report"]  # the report tells of the evaluation


def test_a_stage_that_failed_is_the_first_of_the_next_try(tmp_path, monkeypatch):
    file = write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": STAGES[:3]})

    def fail(*_, **__):
        raise RecipeError("stop here")

    with monkeypatch.context() as broken, pytest.raises(RecipeError, match="stop here"):
        broken.setattr("attar.evaluation.evaluation.evaluate", fail)
        run(file)
    result = run(file)
    assert result.ran == ["evaluate"] and result.skipped == ["teacher", "student"]


@pytest.mark.slow
def test_cluster_transfer_with_every_arrow_a_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    student = {**TRAINING, "method": "cluster_transfer", "teacher": "clusters", "backbone": "resnet8x0.5"}
    recipe = {
        "out": str(tmp_path / "out"),
        "stages": [
            {"name": "pretext", "pretrain": {**TRAINING, "method": "rotation", "backbone": "resnet14x0.5"}},
            {
                "name": "clusters",
                "cluster": {"run": "pretext", "source": "digits", "num_clusters": 20, "layer": "stage3"},
            },
            {"name": "student", "distill": student},
            {"evaluate": {**STAGES[2]["evaluate"], "controls": ["random_init"], "num_untrained": 1}},
            {"report": {"runs": ["student", "pretext", "clusters"], "out": "report.html"}},
        ],
    }
    file = write(tmp_path / "recipe.yaml", recipe)
    assert run(file).ran == ["pretext", "clusters", "student", "evaluate", "report"]
    assert run(file).ran == []
    out = tmp_path / "out"
    settings = yaml.safe_load((out / "student" / "recipe.yaml").read_text())["settings"]
    assert (settings["num_clusters"], settings["layer"]) == (20, "stage3"), "the recipe says what was done"
    assert (out / "student" / "clusters" / "clusters.json").is_file()
    again = {key: value for key, value in student.items() if key not in ("epochs", "batch_size")}
    again |= {"teacher": [out / "clusters"], "out": out / "again"}  # a list of one is that one
    attar.distill(**again, settings=settings)  # all that recipe.yaml says may be given again, clusters' settings too
    with pytest.raises(RecipeError, match="num_clusters would be ignored: the clusters of .* are made"):
        attar.distill(**again | {"out": out / "other"}, settings=settings | {"num_clusters": 30})
    page = (out / "report.html").read_text()
    assert "What is in the clusters of student" in page and "What is in the clusters of clusters" in page
    recipe["stages"][1]["cluster"]["num_clusters"] = 10
    assert run(write(file, recipe)).ran == ["clusters", "student", "evaluate", "report"]
    assert (out / "clusters.replaced-1" / "clusters.json").is_file()
    recipe["stages"][2]["distill"] = {**student, "settings": {"num_clusters": 30}}
    with pytest.raises(RecipeError, match="stage 3: num_clusters would be ignored: the clusters of clusters"):
        read_pipeline(write(file, recipe))
    recipe["stages"][2]["distill"] = student
    recipe["stages"][1]["cluster"]["layer"] = "stage9"
    with pytest.raises(RecipeError, match="stage 2: resnet14x0.5: unknown layer 'stage9'"):
        read_pipeline(write(file, recipe))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ({"pretain": {}}, "unknown stage 'pretain'. Did you mean pretrain"),
        ({"pretrain": {}}, "needs a name"),
        ({"name": "a", "pretrain": {"sauce": 1}}, "unknown argument of pretrain 'sauce'. Did you mean source"),
        ({"evaluate": {}, "report": {}}, "write one of"),
        ("text", "write one of"),
    ],
)
def test_the_file_is_checked_whole_before_anything_runs(tmp_path, stage, text):
    file = write(tmp_path / "r.yaml", {"out": str(tmp_path / "out"), "stages": [STAGES[0], stage]})
    with pytest.raises(RecipeError, match=text):
        run(file)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_pipeline(tmp_path):
    with pytest.raises(RecipeError, match="has `out`"):
        run(write(tmp_path / "r.yaml", ["x"]))
    (tmp_path / "r.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="not valid YAML"):
        run(tmp_path / "r.yaml")


SHORT = {"source": "images.npz", "backbone": "resnet8x0.5", "image_size": 8, "epochs": 1, "batch_size": 32}


def test_what_changed_or_is_gone_is_done_again_and_nothing_is_lost(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    np.savez("images.npz", images=pixels)
    training = {**SHORT, "progress": False}
    recipe = {
        "out": "out",
        "stages": [
            {"name": "model", "pretrain": training},
            {"embed": {"run": "model", "source": "images.npz", "out": "e.npz"}},
        ],
    }
    file = write(tmp_path / "r.yaml", recipe)
    assert run(file).ran == ["model", "embed"]
    first = (tmp_path / "out" / "model" / "backbone.safetensors").read_bytes()

    training["seed"] = 1  # another training: the old one is kept beside it, and what depends on it follows
    assert run(write(file, recipe)).ran == ["model", "embed"]
    assert (tmp_path / "out" / "model.replaced-1" / "backbone.safetensors").read_bytes() == first
    assert (tmp_path / "out" / "model" / "backbone.safetensors").read_bytes() != first
    assert run(file).ran == []

    training["workers"] = 1  # the same training
    assert run(write(file, recipe)).ran and not (tmp_path / "out" / "model.replaced-2").exists()

    (tmp_path / "out" / "e.npz").unlink()
    assert run(file).ran == ["embed"]

    np.savez("images.npz", images=pixels[::-1])  # other images under the same name
    assert run(file).ran == ["model", "embed"] and (tmp_path / "out" / "model.replaced-2").is_dir()


def test_an_argument_that_is_missing_is_found_before_anything_runs(tmp_path):
    file = write(tmp_path / "r.yaml", {"out": str(tmp_path / "out"), "stages": [{"evaluate": {"run": "model"}}]})
    with pytest.raises(RecipeError, match="stage 1: evaluate needs labelled"):
        run(file)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"name": "teacher", "pretrain": TRAINING}, "stage 2: an earlier stage is named 'teacher' too"),
        ({"name": "b", "pretrain": {**TRAINING, "method": "simcrl"}}, "stage 2: unknown method 'simcrl'"),
        ({"name": "b", "pretrain": {**TRAINING, "lr": "fast"}}, "stage 2: lr: 'fast' is no number"),
        ({"name": "b", "pretrain": {**TRAINING, "settings": {"temperature": -1}}}, "temperature=-1.0 is not accepted"),
        ({"name": "b", "distill": {**TRAINING, "teacher": "teecher"}}, "unknown stage, folder or network 'teecher'"),
        ({"evaluate": {"run": "teacher", "labelled": "digits", "protocols": "knnn"}}, "unknown protocol 'knnn'"),
        (
            {
                "evaluate": {
                    "run": "teacher",
                    "labelled": "digits",
                    "protocols": "retrieval",
                    "label_noise": "symmetric:0.4",
                }
            },
            "--label-noise would be ignored: retrieval",
        ),
        (
            {"evaluate": {"run": "teacher", "labelled": "digits", "controls": "random_init"}},
            "controls='random_init' is not accepted; give a list",
        ),
        (
            {"evaluate": {"run": "teacher", "labelled": "digits", "num_untrained": "two"}},
            "num_untrained='two' is not accepted",
        ),
        ({"export": {"run": "teacher", "exits": True, "format": "int8"}}, "--exits is one ONNX graph"),
        ({"report": {"runs": ["teecher"]}}, "teecher is no earlier stage and no folder; earlier: teacher"),
        ({"name": "b", "pretrain": {**TRAINING, "source": ["a", "b"]}}, "give one folder, file or name"),
        ({"name": "b", "pretrain": {**TRAINING, "source": "nowhere/"}}, "stage 2: no such file or folder: nowhere"),
        ({"evaluate": {"run": "teacher", "labelled": "nowhere.npz"}}, "stage 2: no such file or folder: nowhere.npz"),
        ({"evaluate": {"run": "teacher", "labelled": "digits", "test": "no/"}}, "stage 2: no such file or folder: no"),
        ({"name": "b", "pretrain": {**TRAINING, "image_size": 0}}, "stage 2: --image-size 0: it must be 8 or more"),
        ({"name": "b", "distill": {**TRAINING, "teacher": "teacher", "image_size": 0}}, "stage 2: --image-size 0: it"),
        ({"name": "b", "distill": {**TRAINING, "teacher": "teacher,"}}, "stage 2: --teacher .* missing beside the com"),
        ({"name": "b", "distill": {**TRAINING, "teacher": []}}, "stage 2: seed distils and needs a teacher"),
        ({"name": "b", "distill": {**TRAINING, "teacher": "teacher", "teacher_size": "x"}}, "teacher_size: 'x' is no"),
        ({"name": "b,c", "pretrain": TRAINING}, "stage 2: name: 'b,c' is not accepted; a comma joins teachers"),
        ({"name": "b", "cluster": {"run": None, "source": "digits"}}, "stage 2: run: None is not accepted; give one"),
        (
            {"name": "b", "distill": {**TRAINING, "teacher": "teacher", "method": "seed", "channels": 3}},
            "stage 2: channels: 3 does not go with teacher: teacher, which takes 1",
        ),
        (
            {"name": "b", "distill": {**TRAINING, "teacher": "teacher,hog", "channels": 3}},
            "channels: 3 does not go with",
        ),
    ],
)
def test_a_mistake_in_a_later_stage_is_found_before_the_first_trains(tmp_path, second, text):
    first = {"name": "teacher", "pretrain": {**TRAINING, "method": "simclr", "channels": 1}}
    file = write(tmp_path / "r.yaml", {"out": str(tmp_path / "out"), "stages": [first, second]})
    with pytest.raises(AttarError, match=text):
        run(file)
    assert not (tmp_path / "out").exists()


def test_yamls_texts_become_numbers_and_single_names_lists(tmp_path):
    stages = [
        {"name": 1, "pretrain": {**TRAINING, "lr": "1e-3", "epochs": "1"}},
        {"evaluate": {"run": "1", "labelled": "digits", "protocols": "knn", "controls": False, "progress": False}},
    ]
    assert run(write(tmp_path / "r.yaml", {"out": str(tmp_path / "out"), "stages": stages})).ran == ["1", "evaluate"]


def test_corrected_labels_are_evaluated_anew(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    np.savez("images.npz", images=pixels, labels=np.arange(64) % 2)
    stages = [
        {"name": "model", "pretrain": {**SHORT, "source": "digits", "progress": False}},
        {"evaluate": {"run": "model", "labelled": "images.npz", "protocols": ["knn"], "controls": False}},
    ]
    file = write(tmp_path / "r.yaml", {"out": "out", "stages": stages})
    assert run(file).ran == ["model", "evaluate"] and run(file).ran == []
    np.savez("images.npz", images=pixels, labels=np.arange(64) % 4)
    assert run(file).ran == ["evaluate"]


@pytest.mark.slow
def test_the_three_stages_of_sskd_are_a_pipeline(tmp_path):
    stages = [
        {"name": "teacher", "pretrain": {**TRAINING, "method": "supervised"}},
        {"name": "teacher_ss", "distill": {**TRAINING, "teacher": "teacher", "method": "sskd_teacher"}},
        {
            "name": "student",
            "distill": {**TRAINING, "teacher": "teacher_ss", "method": "sskd", "label_noise": "symmetric:0.2"},
        },
    ]
    recipe = {"out": str(tmp_path / "out"), "stages": stages}
    assert run(write(tmp_path / "recipe.yaml", recipe)).ran == ["teacher", "teacher_ss", "student"]
    stages[2]["distill"]["label_fraction"] = 0.5
    assert run(write(tmp_path / "recipe.yaml", recipe)).ran == ["student"], "the first two are shared"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"grid": 0, "layer": "stage3"}, "stage 2: grid=0 is not accepted"),
        ({"num_clusters": 1}, "stage 2: num_clusters=1 does not suit"),
        ({"pca_dim": 0}, "stage 2: pca_dim=0 is not accepted; give a whole number, 1 or more"),
        ({"grid": 9, "layer": "stage1"}, "stage 2: grid=9 is finer than stage1, a map of 8 x 8 places; give 8 or less"),
        ({"image_size": 16}, "stage 2: image_size: 16 would be ignored: pretext takes images of 8 pixels"),
        ({"source": "nowhere/"}, "stage 2: no such file or folder: nowhere"),
        ({"device": "gpu"}, "stage 2: --device 'gpu' is unknown"),
    ],
)
def test_a_cluster_stage_is_checked_before_the_pretext_network_trains(tmp_path, wrong, text):
    stages = [
        {"name": "pretext", "pretrain": {**TRAINING, "method": "rotation"}},
        {"name": "clusters", "cluster": {"run": "pretext", "source": "digits", **wrong}},
    ]
    with pytest.raises(AttarError, match=text):
        run(write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": stages}))
    assert not (tmp_path / "out" / "pretext").exists()


def test_a_later_stage_is_about_the_test_size_of_an_earlier_run(tmp_path):
    stages = [
        {"name": "pretext", "pretrain": {**TRAINING, "method": "rotation", "test_size": "16"}},
        {"name": "clusters", "cluster": {"run": "pretext", "source": "digits", "image_size": 8}},
    ]
    with pytest.raises(AttarError, match="8 would be ignored: pretext takes images of 16 pixels"):
        read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": stages}))


@pytest.mark.parametrize("by", ["teacher", "teachers", "init", "folder", "teacher, not init"])
def test_a_test_size_that_a_later_stage_cannot_have_is_refused_before_the_first_trains(tmp_path, by):
    first = TRAINING
    if by == "folder":
        attar.pretrain(**TRAINING, out=tmp_path / "made")
        first = {**TRAINING, "init": str(tmp_path / "made"), "image_size": None}
    second = {**TRAINING, "backbone": "vit_micro_p4", "test_size": 12, "image_size": None}
    given = {"init": "first"} if by == "init" else {"teacher": ["first", "hog"] if by == "teachers" else "first"}
    kind = "pretrain" if by == "init" else "distill"
    plan = [{"name": "first", "pretrain": first}, {"name": "second", kind: {**second, **given}}]
    if by == "teacher, not init":
        plan.insert(0, {"name": "begun", "pretrain": {**first, "image_size": 12}})
        plan[-1][kind]["init"] = "begun"
    with pytest.raises(
        AttarError, match="stage [23]: --test-size 12: vit_micro_p4 has weights that belong to images of 8"
    ):
        read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": plan}))


def test_a_teacher_size_that_an_earlier_stage_cannot_have_is_refused_before_it_trains(tmp_path):
    second = {**TRAINING, "teacher": "hog,first", "teacher_size": 12}

    def read(backbone):
        plan = [{"name": "first", "pretrain": {**TRAINING, "backbone": backbone}}, {"name": "s", "distill": second}]
        return read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": plan}))

    assert read("resnet8")
    with pytest.raises(AttarError, match="stage 2: --teacher-size 12: vit_micro_p4 has weights that belong to images"):
        read("vit_micro_p4")


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("cluster", {"run": ["pixels"]}, r"stage 2: run: \['pixels'\] is not accepted; give one stage, folder or netw"),
        ("pretrain", {**TRAINING, "init": ["first"]}, "stage 2: init: .* is not accepted"),
        (
            "distill",
            {**TRAINING, "method": "cluster_transfer", "teacher": ["first", "hog"]},
            "stage 2: cluster_transfer clusters one network's features, and 2 are named; give one",
        ),
        ("pretrain", {**TRAINING, "init": "first", "pretrained": True}, "stage 2: --init and --pretrained both say"),
    ],
)
def test_what_a_stage_begins_from_is_one_thing(tmp_path, kind, given, text):
    plan = [{"name": "first", "pretrain": TRAINING}, {"name": "second", kind: {"source": "digits", **given}}]
    with pytest.raises(RecipeError, match=text):
        read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": plan}))


def test_teachers_may_be_joined_by_commas_as_on_the_command_line(tmp_path):
    plan = [{"name": "first", "pretrain": TRAINING}, {"name": "s", "distill": {**TRAINING, "teacher": "first,hog"}}]
    read = read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(tmp_path / "out"), "stages": plan}))[1]
    assert read[1].arguments["teacher"] == ["first", "hog"]


@pytest.mark.parametrize("teacher", ["clusters", "again", "outside", "folder", "list"])
def test_settings_of_clusters_may_be_said_again_and_no_others(tmp_path, monkeypatch, teacher):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    clustering = {"run": "pixels", "source": "digits", "num_clusters": 8, "image_size": 8, "pca_dim": 4, "grid": None}
    plan = [{"name": "clusters", "cluster": clustering}]
    name: str = teacher
    if teacher == "again":
        plan.append({"name": "again", "cluster": {"run": "clusters", "source": "digits"}})
    if teacher == "list":
        name = "clusters"
    if teacher in ("outside", "folder"):
        attar.cluster(**clustering, out=tmp_path / "made", progress=False)
        plan = [{"name": "outside", "cluster": {"run": str(tmp_path / "made"), "source": "digits"}}]
        name = str(tmp_path / "made") if teacher == "folder" else name
    student = {**TRAINING, "method": "cluster_transfer", "teacher": [name] if teacher == "list" else name}
    pipeline = {"out": str(tmp_path / "out"), "stages": [*plan, {"name": "student", "distill": student}]}

    def read(settings):
        student["settings"] = settings
        return read_pipeline(write(tmp_path / "recipe.yaml", pipeline))

    read({"num_clusters": 8, "pca_dim": 4, "layer": "features", "grid": 1, "kmeans_iterations": 50})
    read({"final_lr": 0.001})  # which the first recipe would not take, and the one for small images does
    for other in ({"num_clusters": 9}, {"pca_dim": None}, {"kmeans_iterations": 20}):
        with pytest.raises(RecipeError, match=f"{next(iter(other))} would be ignored: the clusters of {name} are made"):
            read(other)
    with pytest.raises(RecipeError, match="num_clusters would be ignored"):
        read({"pca_dim": 3, "num_clusters": 9})
    student["teacher_size"] = 16
    with pytest.raises(RecipeError, match=f"teacher_size would be ignored: the clusters of {name} are made"):
        read({})
    del student["teacher_size"], clustering["num_clusters"]
    if teacher == "clusters":
        read({"num_clusters": 9})  # of which only the images will tell whether it is what they have


def test_what_earlier_stages_make_need_not_be_there_yet(tmp_path):
    out = tmp_path / "out"
    inception = {"source": "digits", "method": "rotation", "backbone": "inception_v3"}  # takes 96 pixels at least
    stages = [
        {"name": "pretext", "pretrain": inception},
        {"name": "clusters", "cluster": {"run": "pretext", "source": "digits", "layer": "stage5"}},
        {
            "name": "student",
            "pretrain": {**TRAINING, "source": f"{out}/clusters/labels.parquet", "labels": "cluster"},
        },
    ]
    read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(out), "stages": stages}))
    stages.append({"name": "again", "cluster": {"run": "clusters", "source": "digits", "pca_dim": 2}})
    with pytest.raises(
        RecipeError, match="stage 4: pca_dim: it would be ignored, because the clusters of clusters are"
    ):
        read_pipeline(write(tmp_path / "recipe.yaml", {"out": str(out), "stages": stages}))


@pytest.mark.parametrize("wrong", ["cluster", "training"])
def test_what_is_there_comes_back_where_making_it_anew_fails(tmp_path, monkeypatch, caplog, wrong):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    if wrong == "cluster":
        good = {"run": "pixels", "source": "digits", "num_clusters": 8, "image_size": 8}
        stage, bad = {"name": "made", "cluster": good}, {**good, "num_clusters": 2000}
    else:
        good = TRAINING
        stage, bad = {"name": "made", "pretrain": good}, {**good, "method": "jigsaw", "settings": {"max_foreign": 4}}
    recipe = {"out": str(tmp_path / "out"), "stages": [stage]}
    run(write(tmp_path / "r.yaml", recipe))
    made = (tmp_path / "out" / "made" / "backbone.json").read_bytes()
    stage["cluster" if wrong == "cluster" else "pretrain"] = bad
    with pytest.raises(AttarError):
        run(write(tmp_path / "r.yaml", recipe))
    assert (tmp_path / "out" / "made" / "backbone.json").read_bytes() == made
    assert [folder.name for folder in (tmp_path / "out").iterdir() if folder.is_dir()] == ["made"]
    assert "Nothing was changed" not in caplog.text and "nothing was changed" not in caplog.text


def test_clusters_whose_table_is_gone_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    stage = {"name": "made", "cluster": {"run": "pixels", "source": "digits", "num_clusters": 8, "image_size": 8}}
    file = write(tmp_path / "r.yaml", {"out": str(tmp_path / "out"), "stages": [stage]})
    assert run(file).ran == ["made"] and run(file).ran == []
    (tmp_path / "out" / "made" / "labels.parquet").unlink()
    assert run(file).ran == ["made"] and run(file).ran == []
    assert (tmp_path / "out" / "made" / "labels.parquet").is_file()
