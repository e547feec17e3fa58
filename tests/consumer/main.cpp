#include "everything.hpp"

float other();

int main() { return attended<float>() == 5.0F && other() == 5.0F && attended<double>() == 5.0 ? 0 : 1; }
