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
    accuracies: Mapping[str, float] | None = None,
    rule: Rule = 'stepping-stones',
    max_teachers: int | None = None,
) -> Selection:
    """Builds the order from its end: before each teacher comes the one with the least cost to it.

    With the rule 'stepping-stones', a teacher is a candidate only if it is less accurate than the successor and more
    accurate than the student, as far as accuracies are given. With a student it must also be easier to reach for the
    student than the successor, and it is taken only if it is closer to the successor than the student is; otherwise
    the order is complete. With the rule 'all' every teacher is taken. Equal costs go to the teacher named first.

    Args:
        costs: between all teachers, and from the student to each.
        teachers: names of all of them.
        last: the strongest, which teaches last.
        student: its name in `costs`.
        accuracies: name -> AP, of any of the models.
        rule: see above.
        max_teachers: the order has no more than these; None for no limit.
    """
    order, left = [last], [name for name in teachers if name != last]
    reasons = [f'{last} is last: it is the strongest']
    while left and (max_teachers is None or len(order) < max_teachers):
        successor = order[0]
        candidates = left
        if rule == 'stepping-stones':
            obstacles = {name: _obstacle(costs, accuracies or {}, name, successor, student) for name in left}
            reasons += [
                f'{name} is not a candidate before {successor}: {why}' for name, why in obstacles.items() if why
            ]
            candidates = [name for name in left if obstacles[name] is None]
        chosen = min(candidates, key=lambda name: costs[name, successor], default=None)
        if chosen is None:
            reasons.append(f'no teacher before {successor}: there is no candidate')
            break
        if student is not None and rule == 'stepping-stones' and costs[chosen, successor] >= costs[student, successor]:
            reasons.append(
                f'no teacher before {successor}: the closest candidate, {chosen} ({costs[chosen, successor]:.3f}), '
                f'is no closer to it than the student ({costs[student, successor]:.3f})'
            )
            break
        others = [f'{name} {costs[name, successor]:.3f}' for name in candidates if name != chosen]
        cost, before = f'{costs[chosen, successor]:.3f}', f'{chosen} comes before {successor}'
        alone = f'{before} (cost {cost}): it is the only candidate'
        reasons.append(f'{before}: lowest cost, {cost}; {", ".join(others)}' if others else alone)
        order.insert(0, chosen)
        left.remove(chosen)
    if left and len(order) == max_teachers:
        reasons.append(f'{", ".join(left)}: omitted, the order has at most {max_teachers} teachers')
    return Selection(tuple(order), tuple(reasons))


def _obstacle(
    costs: Costs, accuracies: Mapping[str, float], name: str, successor: str, student: str | None
) -> str | None:
    """Why a teacher cannot precede its successor, or None."""
    accuracy = accuracies.get(name)
    if accuracy is not None and accuracy >= accuracies.get(successor, float('inf')):
        return f'its AP of {accuracy:g} is not below {accuracies[successor]:g}'
    if student is None:
        return None
    if accuracy is not None and accuracy <= accuracies.get(student, float('-inf')):
        return f"its AP of {accuracy:g} is not above the student's {accuracies[student]:g}"
    if costs[student, name] >= costs[student, successor]:
        return (
            f'the student reaches {successor} ({costs[student, successor]:.3f}) as easily ({costs[student, name]:.3f})'
        )
    return None
