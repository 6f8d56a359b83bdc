"""A recipe is its yaml: what is read, what may be changed, what is recorded, and how a batch is shared."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recipes.common.errors import RecipeError
from recipes.translation import train
from recipes.translation.recipe import INSTANCES, load
from recipes.translation.train import Machine

ALL = [
    ("iwslt14_de_en", "small"),
    ("wmt14_en_de", "base"),
    ("wmt14_en_de", "big"),
    ("multi30k_de_en", "tiny"),
    ("demo", "tiny"),
]

# What the scripts of the authors say (zhuohan123/macaron-net, translation/macaron-scripts).
PAPER = {
    "iwslt14_de_en-small": {
        "model._name": "macaron_iwslt_de_en",
        "model.share_all_embeddings": True,
        "model.dropout": 0.3,
        "optimization.lr": [0.0015],
        "lr_scheduler.warmup_updates": 8000,
        "optimizer.weight_decay": 0.0001,
        "batch_tokens": 4096,
        "generation.beam": 5,
        "generation.lenpen": 1.0,
        "text.lowercase": True,
        "text.units": 10_000,
    },
    "wmt14_en_de-base": {
        "model._name": "macaron_base",
        "model.dropout": 0.1,
        "optimization.lr": [0.0015],
        "optimizer.weight_decay": 0.0,
        "batch_tokens": 4 * 8192,
        "generation.beam": 4,
        "generation.lenpen": 0.6,
        "text.lowercase": False,
        "text.units": 32_000,
    },
    "wmt14_en_de-big": {
        "model._name": "macaron_big",
        "model.dropout": 0.3,
        "optimization.lr": [0.003],
        "batch_tokens": 4 * 4096 * 16,
    },
}


@pytest.mark.parametrize(("name", "size"), ALL)
def test_the_recipe_is_the_yaml(name: str, size: str) -> None:
    recipe = load(name, size)
    yaml = OmegaConf.load(recipe.yaml)
    assert recipe.tree == OmegaConf.to_container(yaml)
    assert {path.stem for path in recipe.yaml.parent.glob("*.yaml")} == {s for n, s in ALL if n == name}
    assert (recipe.get("task.source_lang"), recipe.get("task.target_lang")) == recipe.text.languages
    keeps = {"epoch": "checkpoint.keep_last_epochs", "update": "checkpoint.keep_interval_updates"}
    assert recipe.get(keeps[recipe.checkpoint_kind]) >= recipe.average, "what is averaged must be kept"


@pytest.mark.parametrize(("name", "size"), ALL)
def test_fairseq_knows_every_key(name: str, size: str) -> None:
    train.check_names(load(name, size))


@pytest.mark.parametrize(
    "change", [("model.drop_out", 0.1), ("optimization.max_updates", 5), ("checkpoint.keep_last_epochs", "many")]
)
def test_misspelt_keys_and_wrong_types_are_found(change: tuple[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"tiny\.yaml with its changes is no configuration of fairseq: .*Correct"):
        train.check_names(load("multi30k_de_en").changed(changes=[change]))


@pytest.mark.parametrize("name", PAPER)
def test_the_hyper_parameters_of_the_paper(name: str) -> None:
    settings = load(*name.split("-")).settings()
    assert {key: settings[key] for key in PAPER[name]} == PAPER[name]
    assert settings["criterion.label_smoothing"] == 0.1 and settings["criterion.smoothing_over"] == "all"
    assert settings["optimizer.adam_betas"] == "(0.9,0.98)" and settings["optimization.clip_norm"] == 0.0


def test_an_update_is_shared_equally_or_not_at_all() -> None:
    base, big = load("wmt14_en_de", "base"), load("wmt14_en_de", "big")
    assert [base.update_freq(n) for n in (1, 2, 4)] == [4, 2, 1]
    assert [big.update_freq(n) for n in (1, 8, 32, 64)] == [64, 8, 2, 1]
    with pytest.raises(RecipeError, match=r"8 processes .*32768 tokens.* Use 1, 2, 4 .*or change --max-tokens 4096$"):
        base.update_freq(8)
    smaller = base.changed(max_tokens=4096)
    assert smaller.batch_tokens == base.batch_tokens and smaller.update_freq(8) == 1
    with pytest.raises(RecipeError, match="--batch-tokens 32768 is no multiple of --max-tokens 5000"):
        base.changed(max_tokens=5000)
    halved = base.changed(batch_tokens=16384)
    assert halved.batch_tokens == 16384 and halved.max_tokens == 8192


TURNED = "attention/2 ffn attention/2"


def test_changes_go_where_fairseq_has_them() -> None:
    recipe = load("iwslt14_de_en").changed(
        splitting="lie", seed=3, lr=1e-3, average=1, changes=[("model.encoder_layers", 2)], beam=None
    )
    assert (recipe.splitting, recipe.seed, recipe.average) == ("lie", 3, 1)
    assert recipe.get("optimization.lr") == [1e-3] and recipe.get("model.encoder_layers") == 2
    assert recipe.get("generation.beam") == 5
    assert load("iwslt14_de_en").changed(splitting="ffn/2  attention ffn/2").splitting == "strang"
    assert load("iwslt14_de_en").changed(splitting="attention/2 ffn attention/2.0").splitting == TURNED
    untouched = load("iwslt14_de_en")
    assert (untouched.splitting, untouched.get("model.encoder_layers")) == ("strang", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dropout": 1.5}, "--dropout 1.5: must be at least 0 and below 1"),
        ({"beam": 0}, "--beam 0: must be a whole number of at least 1"),
        ({"lr": -1.0}, "--lr -1.0: must be a positive, finite number"),
        ({"seed": -1}, "--seed -1: must be"),
        ({"precision": "fp8"}, "--precision fp8: must be one of fp32, bf16, fp16"),
        ({"splitting": "ffn/2 attention"}, r"--splitting ffn/2 attention: .*'ffn' add up to 0.5"),
        ({"changes": [("model.splitting", "macaron")]}, "--splitting macaron: .*choose one of strang, lie"),
        ({"changes": [("common.seed.x", 1)]}, "--set common.seed.x=1: .* give a group and a name"),
    ],
)
def test_values_that_cannot_work(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _ = load("iwslt14_de_en").changed(**values)


def test_unknown_recipe_or_size() -> None:
    with pytest.raises(RecipeError, match=f"no recipe 'wmt15'; there are {', '.join(INSTANCES)}"):
        load("wmt15")
    with pytest.raises(RecipeError, match="--size huge: wmt14_en_de has base, big"):
        load("wmt14_en_de", "huge")


def test_the_record_says_what_is_computed_and_not_where() -> None:
    recipe = load("wmt14_en_de")
    elsewhere = recipe.changed(changes=[("common.cpu", True), ("dataset.num_workers", 7), ("common.log_interval", 9)])
    assert elsewhere.settings() == recipe.settings()
    assert recipe.changed(splitting="lie").settings() != recipe.settings()
    assert recipe.settings()["batch_tokens"] == 32768


# --- the machine ------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    return lambda count: monkeypatch.setattr(train, "count_gpus", lambda: count)


def test_as_many_gpus_as_can_share_the_batch(gpus) -> None:
    base, small = load("wmt14_en_de"), load("iwslt14_de_en")
    for available, used in ((0, 1), (1, 1), (3, 2), (8, 4)):
        gpus(available)
        assert Machine().processes_for(base) == used
        assert Machine().processes_for(small) == 1
    gpus(8)
    assert Machine(nodes=2, rendezvous="a:1").processes_for(base) == 2
    assert Machine(cpu=True).processes_for(base) == 1
    assert Machine(cpu=True, processes=4).processes_for(base) == 4


def test_machines_that_do_not_fit(gpus) -> None:
    gpus(2)
    with pytest.raises(RecipeError, match="--gpus 4: this machine has 2; ask for fewer"):
        Machine(processes=4).processes_for(load("wmt14_en_de"))
    with pytest.raises(RecipeError, match="2 processes cannot share an update of 4096 tokens"):
        Machine(processes=2).processes_for(load("iwslt14_de_en"))
    with pytest.raises(RecipeError, match="--nodes 2: needs --rendezvous HOST:PORT"):
        Machine(nodes=2, rendezvous="node1")
    with pytest.raises(RecipeError, match="--nodes 0: must be at least 1"):
        Machine(nodes=0)


def test_commands(gpus, tmp_path) -> None:
    base = load("wmt14_en_de")
    gpus(4)
    assert train.command(base, Machine(processes=1), tmp_path)[1:3] == ["-m", "fairseq_cli.hydra_train"]
    one_node = train.command(base, Machine(), tmp_path)
    assert one_node[1:7] == ["-m", "torch.distributed.run", "--nproc_per_node", "4", "--standalone", "-m"]
    machine = Machine(nodes=2, rendezvous="node1:29500", launcher="srun --nodes=2 each")
    several = train.command(base, machine, tmp_path)
    assert several[:3] == ["srun", "--nodes=2", "each"]
    line = " ".join(several)
    assert "--nproc_per_node 2 --nnodes 2 --master_addr node1 --master_port 29500 -m fairseq_cli.hydra_train" in line


def test_configuration_of_a_machine(gpus, tmp_path) -> None:
    base = load("wmt14_en_de", "big").changed(precision="bf16")
    gpus(2)
    tree = train.configuration(base, Machine(), tmp_path / "data-bin", tmp_path / "checkpoints")
    assert tree["optimization"]["update_freq"] == [32]
    assert tree["distributed_training"] == {"distributed_world_size": 2}
    assert tree["common"]["bf16"] is True and tree["common"]["cpu"] is False
    assert tree["task"]["data"] == str(tmp_path / "data-bin")
    on_cpu = train.configuration(base, Machine(cpu=True, processes=2), tmp_path, tmp_path)
    assert on_cpu["common"]["cpu"] is True
    assert on_cpu["distributed_training"]["distributed_backend"] == "gloo"
    assert load("wmt14_en_de", "big").get("optimization.update_freq") == [16], "the recipe itself is unchanged"
    with pytest.raises(RecipeError, match="--precision fp16: needs a GPU"):
        train.configuration(base.changed(precision="fp16"), Machine(cpu=True), tmp_path, tmp_path)
