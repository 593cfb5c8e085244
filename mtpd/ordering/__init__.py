"""In which order teachers are to teach: adaptation cost between their features, then backward greedy selection."""

from mtpd.ordering.costs import AdaptationCosts, Sampling, adaptation_costs
from mtpd.ordering.selection import Selection, backward_greedy

__all__ = ['AdaptationCosts', 'Sampling', 'Selection', 'adaptation_costs', 'backward_greedy']
