"""Backward greedy selection: from adaptation costs to an order of teachers.

Source: Cao et al., Learning Lightweight Object Detectors via Multi-Teacher Progressive Distillation, ICML 2023. The
conditions under which a teacher is left out are the best reading known to us, not checked against the paper; `Rule`
chooses between them and none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# (from, to) -> adaptation cost.
Costs = Mapping[tuple[str, str], float]
# 'stepping-stones' takes a teacher only where it shortens the way; 'all' takes every one.
Rule = Literal['stepping-stones', 'all']


@dataclass(frozen=True)
class Selection:
    """An order of teachers.

    Attributes:
        teachers: names, the first to teach first.
        reasons: a sentence for each decision, in the order in which they were taken: the last teacher's first.
    """

    teachers: tuple[str, ...]
    reasons: tuple[str, ...]


def backward_greedy(
    costs: Costs,
    teachers: Sequence[str],
    *,
    last: str,
    student: str | None = None,
    rule: Rule = 'stepping-stones',
    max_teachers: int | None = None,
) -> Selection:
    """Builds the order from its end: before each teacher comes the one with the least cost to it.

    With a student and the rule 'stepping-stones', a teacher is a candidate only if the student reaches it more easily
    than the successor, and it is taken only if it is closer to the successor than the student is; otherwise the order
    is complete. Without a student, or with the rule 'all', every teacher is taken. Equal costs go to the teacher named
    first.

    Args:
        costs: between all teachers, and from the student to each.
        teachers: names of all of them.
        last: the strongest, which teaches last.
        student: its name in `costs`.
        rule: see above.
        max_teachers: the order has no more than these; None for no limit.
    """
    order, left = [last], [name for name in teachers if name != last]
    reasons = [f'{last} is last: it was named as the strongest']
    while left and (max_teachers is None or len(order) < max_teachers):
        successor = order[0]
        candidates = left
        if student is not None and rule == 'stepping-stones':
            direct = costs[student, successor]
            candidates = [name for name in left if costs[student, name] < direct]
            for name in left:
                if name not in candidates:
                    reasons.append(
                        f'{name} is no candidate before {successor}: the student reaches {successor} ({direct:.3f}) '
                        f'as easily as {name} ({costs[student, name]:.3f})'
                    )
            candidates = [name for name in candidates if costs[name, successor] < direct]
            if not candidates:
                reasons.append(
                    f'nothing before {successor}: no candidate is closer to it than the student ({direct:.3f})'
                )
                break
        chosen = min(candidates, key=lambda name: costs[name, successor])
        reasons.append(_reason(costs, candidates, chosen=chosen, successor=successor))
        order.insert(0, chosen)
        left.remove(chosen)
    if left and len(order) == max_teachers:
        reasons.append(f'{", ".join(left)}: left out, the order has at most {max_teachers} teachers')
    return Selection(tuple(order), tuple(reasons))


def _reason(costs: Costs, candidates: Sequence[str], *, chosen: str, successor: str) -> str:
    cost = f'{costs[chosen, successor]:.3f}'
    others = [f'{name} {costs[name, successor]:.3f}' for name in candidates if name != chosen]
    if not others:
        return f'{chosen} comes before {successor} (cost {cost}): there is no other candidate'
    return f'{chosen} comes before {successor}: the least cost to it, {cost}; {", ".join(others)}'
