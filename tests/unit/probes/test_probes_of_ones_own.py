"""A probe of one's own: a slip in its class has a name before anything is fitted, and no name is taken from another."""

import pytest
import torch
from torch import nn

from bindkit.errors import ProbeError
from bindkit.probes import PROBES, Linear, Probe, load_probe, make_probe, register_probe, save_probe


@pytest.fixture(autouse=True)
def unregistered():
    yield
    PROBES.pop("mine", None)


class Sound(Probe):
    """Products of the first k dimensions."""

    numbered = "k"

    def __init__(self, d_model, k=2):
        super().__init__(d_model, k=k)
        self.weight = nn.Parameter(torch.randn(k))
        self.bias = nn.Parameter(torch.zeros(()))

    def pairwise(self, x, y):
        k = len(self.weight)
        return (x[..., :k] * self.weight) @ y[..., :k].mT + self.bias


def mine(**changes):
    """A class like `Sound` with some of its methods replaced, registered."""
    return register_probe("mine")(type("Mine", (Sound,), changes))


def test_a_sound_probe_is_made_saved_and_read(tmp_path):
    mine()
    for name in ("mine", "mine@3"):
        probe = make_probe(name, 5, seed=1)
        loaded = load_probe(save_probe(probe, tmp_path), d_model=5)
        x = torch.randn(2, 3, 5)
        assert torch.equal(loaded(x), probe(x))


def test_trying_a_probe_changes_neither_its_weights_nor_any_random_state():
    class Counting(Sound):
        def __init__(self, d_model, k=2):
            super().__init__(d_model, k)
            self.register_buffer("calls", torch.zeros(()))

        def pairwise(self, x, y):
            self.calls += 1
            return super().pairwise(x, y) + torch.rand(())

    register_probe("mine")(Counting)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    probe = make_probe("mine", 5, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert probe.calls == 0
    torch.manual_seed(1)
    assert torch.equal(probe.weight, torch.randn(2))


@pytest.mark.parametrize("name", ["", "my/probe", "../../../esc", "a b", "a@3", "a-b", "3a", "größe", "a\n"])
def test_a_name_that_is_no_plain_word_is_refused(name):
    """It becomes part of directories."""
    with pytest.raises(ProbeError, match=r"letters, digits and underscores.*got .*@register_probe"):
        register_probe(name)


@pytest.mark.parametrize("name", ["linear", "self_attention", "class_map"])
def test_a_shipped_probe_is_not_replaced(name):
    shipped = PROBES[name]
    with pytest.raises(ProbeError, match=f"'{name}' is a probe that comes with bindkit; register Sound as another"):
        register_probe(name)(Sound)
    assert PROBES[name] is shipped
    assert Linear.kind == "linear"


def test_ones_own_name_can_be_registered_again_and_the_latest_class_counts():
    """A notebook's cell is run twice."""
    first, latest = mine(), mine()
    assert first is not latest
    assert type(make_probe("mine", 4)) is latest


@pytest.mark.parametrize("thing", [nn.Linear, Sound(4), "linear", lambda x, y: x @ y.mT])
def test_only_a_subclass_of_probe_is_registered(thing):
    with pytest.raises(ProbeError, match="is no probe; write class Mine"):
        register_probe("mine")(thing)
    assert "mine" not in PROBES


def test_units_that_there_are_not_are_refused():
    with pytest.raises(ProbeError, match="trained_in = 'white'; it is one of normed, scaled, whitened, raw"):
        mine(trained_in="white")


def forgets_its_number(self, d_model, k=2):
    Probe.__init__(self, d_model)
    self.weight = nn.Parameter(torch.randn(k))
    self.bias = nn.Parameter(torch.zeros(()))


def remembers_another(self, d_model, k=2):
    Sound.__init__(self, d_model, k)
    self.options = {"k": 2}


def takes_no_number(self, d_model):
    Sound.__init__(self, d_model)


def depends_on_what_it_does_not_tell(self, d_model, k=2, *, size=[0]):  # noqa: B006
    Sound.__init__(self, d_model, k)
    size[0] += 1
    self.extra = nn.Parameter(torch.zeros(size[0]))


def no_base(self, d_model, k=2):
    nn.Module.__init__(self)
    self.weight, self.bias = nn.Parameter(torch.randn(k)), nn.Parameter(torch.zeros(()))


def parameter_before_base(self, d_model, k=2):
    self.weight = nn.Parameter(torch.randn(k))
    Probe.__init__(self, d_model, k=k)


def nothing_to_learn(self, d_model, k=2):
    Probe.__init__(self, d_model, k=k)
    self.weight, self.bias = torch.ones(k), 0.0


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (forgets_its_number, r"made with \{'k': 3\} but remembers \{\}.*super\(\).__init__\(d_model, k=k\)"),
        (remembers_another, r"made with \{'k': 3\} but remembers \{'k': 2\}"),
        (depends_on_what_it_does_not_tell, "weights of shapes .* would come back from disk with"),
        (no_base, r"does not call Probe's; begin its __init__ with super\(\).__init__\(d_model, k=k\)"),
        (parameter_before_base, r"cannot be made .*super\(\).__init__\(d_model, ...\) before anything else"),
        (takes_no_number, "cannot be made with d_model=5 and the options {'k': 3}"),
        (nothing_to_learn, r"nothing to learn; give it at least an offset: self.bias = torch.nn.Parameter"),
    ],
)
def test_an_init_that_would_lose_something_is_named(start, message):
    mine(__init__=start)
    with pytest.raises(ProbeError, match=r"the probe 'mine' \(Mine\)|the __init__ of the probe 'mine'") as told:
        make_probe("mine@3", 5)
    told.match(message)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda self, x, y: x @ self.bias.expand(5), r"gave logits of shape \[2, 3\], expected \[2, 3, 3\]"),
        (lambda self, x, y: Sound.pairwise(self, x, y)[..., :1], r"shape \[2, 3, 1\], expected \[2, 3, 3\]"),
        (lambda self, x, y: Sound.pairwise(self, x, y)[..., None], r"shape \[2, 3, 3, 1\], expected \[2, 3, 3\]"),
        (lambda self, x, y: Sound.pairwise(self, y, x), r"shapes? \[2, 3, 5\] and \[2, 4, 5\].*\[2, 4, 3\], expected"),
        (lambda self, x, y: self.bias + torch.einsum("snd,smd->snm", x, y), r"\[1, 5\] and \[4, 5\], failed with"),
        (lambda self, x, y: self.bias + x @ y, r"failed with RuntimeError: .*expected logits \[2, 3, 3\]"),
        (lambda self, x, y: Sound.pairwise(self, x, y) > 0, "gave torch.bool; expected a float tensor"),
        (lambda self, x, y: (Sound.pairwise(self, x, y),), "gave tuple; expected a float tensor"),
        (lambda self, x, y: x @ y.mT, "depend on none of its parameters"),
        (lambda self, x, y: Sound.pairwise(self, x, y).detach(), "depend on none of its parameters"),
    ],
)
def test_logits_that_are_not_one_a_pair_are_named(logits, message):
    mine(pairwise=logits)
    with pytest.raises(ProbeError, match=message):
        make_probe("mine", 5)


def test_a_probe_without_pairwise_is_named():
    @register_probe("mine")
    class Mine(Probe):
        pass

    with pytest.raises(ProbeError, match=r"abstract.*has a method pairwise\(x, y\)"):
        make_probe("mine", 5)


def test_a_number_given_twice_is_refused():
    with pytest.raises(ProbeError, match="gives rank already"):
        make_probe("quadratic_fixed_rank@16", 4, rank=3)
