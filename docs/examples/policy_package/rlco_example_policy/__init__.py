"""An example of a policy that lives outside RLCo."""
