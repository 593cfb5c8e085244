"""The order of teachers: costs of adapting the features of one to those of another, then backward greedy selection."""

from mtpd.ordering.costs import AdaptationCosts, Sampling, adaptation_costs
from mtpd.ordering.selection import Selection, backward_greedy

__all__ = ['AdaptationCosts', 'Sampling', 'Selection', 'adaptation_costs', 'backward_greedy']
