# SPDX-License-Identifier: Apache-2.0
"""Linear maps and gates: products and residuals of their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

from covrl.models.layers import apply_gate, multiply


def test_gradient_of_a_matrix_is_a_product_of_two_matrices():
  x, matrix = jnp.ones((2, 3, 4, 5)), jnp.ones((4, 5, 6))

  def gradient(matrix):
    result, pull_back = jax.vjp(lambda m: multiply(x, m, 2), matrix)
    return pull_back(result)

  np.testing.assert_allclose(multiply(x, matrix, 2), 20 * jnp.ones((2, 3, 6)))
  equations = jax.make_jaxpr(gradient)(matrix).eqns
  products = [e for e in equations if e.primitive.name == 'dot_general']
  assert len(products) == 2
  assert all(e.invars[0].aval.ndim == 2 for e in products)


def test_gate_saves_its_inputs_only():
  gate, up = jnp.linspace(-3.0, 3.0, 8), jnp.linspace(1.0, 2.0, 8)
  value, pull_back = jax.vjp(lambda g, u: apply_gate(g, u, 'silu'), gate, up)
  assert sum(x.size for x in jax.tree.leaves(pull_back)) == 16
  np.testing.assert_allclose(value, jax.nn.silu(gate) * up, rtol=1e-6)
  slope = jax.grad(lambda g: jnp.sum(jax.nn.silu(g) * up))
  np.testing.assert_allclose(pull_back(jnp.ones(8))[0], slope(gate), rtol=1e-5)
