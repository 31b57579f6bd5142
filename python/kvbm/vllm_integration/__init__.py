# SPDX-License-Identifier: Apache-2.0
"""kvbm behind vLLM."""
