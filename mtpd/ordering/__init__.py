"""The order of teachers: costs of adapting one teacher's features to another's, measured between their caches."""

from mtpd.ordering.measure import AdaptationCosts, Sampling, adaptation_costs
from mtpd.ordering.selection import Selection, backward_greedy

__all__ = ['AdaptationCosts', 'Sampling', 'Selection', 'adaptation_costs', 'backward_greedy']
