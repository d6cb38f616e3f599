"""Do a model's tokens lie near low-dimensional, incoherent subspaces?"""
