"""The distiller applies each term on each of its levels, with its weight."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.losses.cwd import CwdOptions, cwd
from mtpd.losses.distiller import Distiller
from mtpd.losses.maps import valid_cells
from mtpd.losses.masked_mse import MaskedMseOptions
from mtpd.losses.mgd import MgdOptions
from mtpd.losses.options import Decay, LevelOptions
from mtpd.losses.pkd import PkdOptions, pkd

STUDENT = [Level('p3', 8, 4), Level('p4', 16, 4), Level('p5', 32, 4)]
TEACHER = [Level('p2', 4, 6), Level('p3', 8, 6), Level('p4', 16, 4)]
Maps = dict[str, Tensor]


def random_maps(*, height: int = 48, width: int = 80) -> tuple[Maps, Maps, Maps]:
    generator = torch.Generator().manual_seed(0)

    def draw(levels: list[Level]) -> Maps:
        grids = {level.name: level.grid(height, width) for level in levels}
        return {level.name: torch.randn(2, level.channels, *grids[level.name], generator=generator) for level in levels}

    sizes = [(height, width), (height // 2, width // 3)]
    masks = {level.name: valid_cells(sizes, stride=level.stride, grid=level.grid(height, width)) for level in STUDENT}
    return draw(STUDENT), draw(TEACHER), masks


def mean_square(values: Tensor, mask: Tensor) -> float:
    return values.double()[mask.expand_as(values)].square().mean().item()


def channel_variance(values: Tensor, mask: Tensor) -> float:
    channels = [values.double()[:, channel][mask[:, 0]] for channel in range(values.shape[1])]
    return sum(channel.var(correction=0).item() for channel in channels) / len(channels)


def test_mse_is_the_share_of_the_teachers_variance() -> None:
    student, teacher, masks = random_maps()
    distiller = Distiller([MaskedMseOptions(weight=3.0)], student=STUDENT, teacher=TEACHER)
    losses = distiller(student, teacher, masks)
    assert list(losses) == ['distill/masked_mse/p3', 'distill/masked_mse/p4']

    want = 3 * mean_square(student['p4'] - teacher['p4'], masks['p4']) / channel_variance(teacher['p4'], masks['p4'])
    assert losses['distill/masked_mse/p4'].item() == pytest.approx(want, rel=1e-5)

    # p3 has 4 channels against 6: it goes through the adapter, the module's only layer.
    weight, bias = (parameter.detach().double() for parameter in distiller.parameters())
    adapted = torch.einsum('oi,bihw->bohw', weight[:, :, 0, 0], student['p3'].double()) + bias[:, None, None]
    want = 3 * mean_square(adapted - teacher['p3'], masks['p3']) / channel_variance(teacher['p3'], masks['p3'])
    assert losses['distill/masked_mse/p3'].item() == pytest.approx(want, rel=1e-5)


def test_mse_does_not_depend_on_the_scale_of_the_features() -> None:
    student, teacher, masks = random_maps()
    distiller = Distiller([MaskedMseOptions(levels=('p4',))], student=STUDENT, teacher=TEACHER)
    scaled = [{name: 50 * values for name, values in maps.items()} for maps in (student, teacher)]
    before, after = distiller(student, teacher, masks), distiller(*scaled, masks)
    torch.testing.assert_close(before, after)


def test_mse_as_it_is_when_asked() -> None:
    student, teacher, masks = random_maps()
    distiller = Distiller([MaskedMseOptions(levels=('p4',), scale='none')], student=STUDENT, teacher=TEACHER)
    want = mean_square(student['p4'] - teacher['p4'], masks['p4'])
    assert distiller(student, teacher, masks)['distill/masked_mse/p4'].item() == pytest.approx(want, rel=1e-5)


def test_default_mgd_is_the_published_sum_at_the_published_input() -> None:
    """At 800x1088 px, without padding, the loss is a/B sum_bchw (G(M S) - T)^2 to the letter."""
    level = Level('p7', 128, 5)
    distiller = Distiller([MgdOptions()], student=[level], teacher=[level])
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, 9, generator=generator) for _ in range(2))
    mask = valid_cells([(800, 1088)] * 2, stride=128, grid=(7, 9))
    got = distiller({'p7': student}, {'p7': teacher}, {'p7': mask}, generator=torch.Generator().manual_seed(4))

    keep = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(4)) <= 1 - 0.65
    first, first_bias, second, second_bias = (parameter.detach().double() for parameter in distiller.parameters())
    generated = nn.functional.conv2d((student * keep).double(), first, first_bias, padding=1).clamp(min=0)
    generated = nn.functional.conv2d(generated, second, second_bias, padding=1)
    want = 2e-5 * (generated - teacher.double()).square().sum().item() / 2
    assert got['distill/mgd/p7'].item() == pytest.approx(want, rel=1e-5)


def test_mgd_keeps_its_strength_at_other_sizes() -> None:
    level = Level('p3', 8, 4)
    distiller = Distiller([MgdOptions(mask_ratio=0.0)], student=[level], teacher=[level])
    nn.init.zeros_(distiller.get_parameter('losses.mgd/p3.generation.2.weight'))
    nn.init.zeros_(distiller.get_parameter('losses.mgd/p3.generation.2.bias'))
    losses = []
    for height, width in ((64, 64), (128, 160)):
        grid = level.grid(height, width)
        teacher, mask = torch.ones(1, 4, *grid), valid_cells([(height, width)], stride=8, grid=grid)
        losses.append(distiller({'p3': torch.zeros_like(teacher)}, {'p3': teacher}, {'p3': mask})['distill/mgd/p3'])
    # G gives 0 and the teacher is 1 everywhere: the published sum counts the elements of p3 at 800x1088.
    assert [loss.item() for loss in losses] == pytest.approx([2e-5 * 4 * 100 * 136] * 2, rel=1e-5)


def test_mgd_as_a_mean() -> None:
    student, teacher, masks = random_maps()
    terms = MgdOptions(levels=('p3',), weight=1.0, normalize='mean'), MgdOptions(levels=('p3',), weight=1.0)
    losses = []
    for term in terms:
        torch.manual_seed(3)
        distiller = Distiller([term], student=STUDENT, teacher=TEACHER)
        generator = torch.Generator().manual_seed(0)
        losses.append(distiller(student, teacher, masks, generator=generator)['distill/mgd/p3'].item())
    # The published sum runs over the channels of the teacher, 6, not of the student, 4.
    assert losses[1] == pytest.approx(losses[0] * 6 * 100 * 136, rel=1e-5)


def test_pkd_and_cwd_weigh_what_their_functions_give() -> None:
    student, teacher, masks = random_maps()
    terms: list[LevelOptions] = [PkdOptions(), CwdOptions(weight=3.0, temperature=2.0)]
    distiller = Distiller(terms, student=STUDENT, teacher=TEACHER)
    losses = distiller(student, teacher, masks)
    # Levels by stride; p3 has other channels and goes through an adapter of each loss, p4 does not.
    assert list(losses) == ['distill/pkd/p3', 'distill/pkd/p4', 'distill/cwd/p3', 'distill/cwd/p4']
    maps = student['p4'], teacher['p4'], masks['p4']
    assert losses['distill/pkd/p4'].item() == pytest.approx(10 * pkd(*maps).item(), rel=1e-6)
    assert losses['distill/cwd/p4'].item() == pytest.approx(3 * cwd(*maps, temperature=2.0).item(), rel=1e-6)
    assert [name for name, _ in distiller.named_parameters()] == [
        f'losses.{loss}/p3.adapter.{kind}' for loss in ('pkd', 'cwd') for kind in ('weight', 'bias')
    ]


def test_only_what_decays_does() -> None:
    student, teacher, masks = random_maps()
    terms: list[LevelOptions] = [
        PkdOptions(levels=('p4',), decay=Decay(kind='linear')),
        CwdOptions(levels=('p4',), decay=Decay(kind='step', at=(0.5,))),
        MaskedMseOptions(levels=('p4',)),
    ]
    distiller = Distiller(terms, student=STUDENT, teacher=TEACHER)
    start = distiller(student, teacher, masks)
    assert distiller.decay_factors(progress=0.0) == {'distill/pkd/p4': 1, 'distill/cwd/p4': 1}
    for progress, pkd_factor, cwd_factor in ((0.25, 0.75, 1), (0.5, 0.5, 0)):
        factors = {'distill/pkd/p4': pkd_factor, 'distill/cwd/p4': cwd_factor}
        assert distiller.decay_factors(progress=progress) == factors
        losses = distiller(student, teacher, masks, progress=progress)
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(factors.get(name, 1) * start[name].item(), rel=1e-6)


def test_what_has_decayed_to_nothing_is_not_computed() -> None:
    """The loss is recorded as 0; a NaN shows that its maps are not looked at, a missing gradient that no layer is."""
    student, teacher, masks = random_maps()
    student['p3'].requires_grad_()
    teacher['p3'] = torch.full_like(teacher['p3'], torch.nan)
    decay = Decay(kind='step', at=(0.5,))
    terms: list[LevelOptions] = [
        MaskedMseOptions(levels=('p3',), decay=decay),
        MgdOptions(levels=('p3',), decay=decay),
        PkdOptions(levels=('p3',), decay=decay),
        MaskedMseOptions(levels=('p4',)),
    ]
    distiller = Distiller(terms, student=STUDENT, teacher=TEACHER)
    before = distiller(student, teacher, masks, progress=0.4)
    assert sum(loss.isnan().item() for loss in before.values()) == 3
    after = distiller(student, teacher, masks, progress=0.5)
    assert list(after) == list(before)
    assert [loss.item() for loss in list(after.values())[:3]] == [0, 0, 0]
    assert all(loss.dtype == torch.float32 for loss in after.values())
    assert after['distill/masked_mse/p4'] > 0
    assert not torch.stack(list(after.values())).sum().requires_grad


def test_several_terms_train_all_their_layers() -> None:
    student, teacher, masks = random_maps()
    for values in student.values():
        values.requires_grad_()
    terms: list[LevelOptions] = [
        MaskedMseOptions(levels=('p3',), adapter='always'),
        MgdOptions(levels=('p3', 'p4')),
        PkdOptions(levels=('p3',)),
        CwdOptions(levels=('p4',), adapter='always'),
    ]
    distiller = Distiller(terms, student=STUDENT, teacher=TEACHER)
    losses = distiller(student, teacher, masks)
    assert list(losses) == [
        'distill/masked_mse/p3', 'distill/mgd/p3', 'distill/mgd/p4', 'distill/pkd/p3', 'distill/cwd/p4'
    ]  # fmt: skip
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in distiller.parameters())
    assert student['p3'].grad is not None
    assert student['p5'].grad is None


@pytest.mark.parametrize(
    'term',
    [MaskedMseOptions(adapter='always'), MgdOptions(), PkdOptions(adapter='always'), CwdOptions(adapter='always')],
)
def test_nothing_valid_trains_nothing(term: LevelOptions) -> None:
    student, teacher, masks = random_maps()
    masks = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    student, teacher = ({name: values * math.nan for name, values in maps.items()} for maps in (student, teacher))
    distiller = Distiller([term], student=STUDENT, teacher=TEACHER)
    losses = distiller(student, teacher, masks)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in distiller.parameters())


def test_same_seed_same_layers_and_losses() -> None:
    student, teacher, masks = random_maps()
    runs = []
    for _ in range(2):
        torch.manual_seed(8)
        distiller = Distiller([MaskedMseOptions(), MgdOptions()], student=STUDENT, teacher=TEACHER)
        runs.append(distiller(student, teacher, masks, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(loss, runs[1][name]) for name, loss in runs[0].items())


def test_a_loss_twice_on_a_level() -> None:
    with pytest.raises(InputError, match='masked_mse on p3 twice'):
        Distiller([MaskedMseOptions(), MaskedMseOptions(levels=('p3',))], student=STUDENT, teacher=TEACHER)


def test_a_teacher_that_was_not_padded_to_the_batch() -> None:
    student, teacher, masks = random_maps()
    teacher['p4'] = teacher['p4'][..., :-1]
    distiller = Distiller([MaskedMseOptions()], student=STUDENT, teacher=TEACHER)
    with pytest.raises(InputError, match=r'p4 of the teacher has the shape \(2, 4, 3, 4\), expected \(2, 4, 3, 5\)'):
        distiller(student, teacher, masks)


@pytest.mark.parametrize('owner', ['student', 'teacher', 'masks'])
def test_a_missing_map(owner: str) -> None:
    maps: Mapping[str, Maps] = dict(zip(('student', 'teacher', 'masks'), random_maps(), strict=True))
    del maps[owner]['p4']
    distiller = Distiller([MaskedMseOptions()], student=STUDENT, teacher=TEACHER)
    with pytest.raises(InputError, match=f'{owner} returns p'):
        distiller(**maps)
