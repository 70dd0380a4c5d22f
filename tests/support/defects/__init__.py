"""Defects to plant in a model, each with what an audit must say of it and where.

``table`` lists them; ``experts`` and ``others`` plant them in the experts' weights and elsewhere;
``patient`` is the model that gets one.
"""
