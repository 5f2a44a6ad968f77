"""Claims of the papers: data in bench/papers/ (`paper`), tested over seeds (`predicates`), told in a `ledger`."""
