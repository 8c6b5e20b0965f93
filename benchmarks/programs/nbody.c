/* The n-body problem in doubles.  Prints the energy before and after. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 5 };
struct body { double x[3], v[3], mass; };
static const double pi = 3.141592653589793, year = 365.24;

static struct body sun[N] = {
    {{0, 0, 0}, {0, 0, 0}, 1},
    {{4.84143144246472090e+00, -1.16032004402742839e+00, -1.03622044471123109e-01},
     {1.66007664274403694e-03, 7.69901118419740425e-03, -6.90460016972063023e-05}, 9.54791938424326609e-04},
    {{8.34336671824457987e+00, 4.12479856412430479e+00, -4.03523417114321381e-01},
     {-2.76742510726411899e-03, 4.99852801234917238e-03, 2.30417297573763929e-05}, 2.85885980666130812e-04},
    {{1.28943695621391310e+01, -1.51111514016986312e+01, -2.23307578892655734e-01},
     {2.96460137564761618e-03, 2.37847173959480950e-03, -2.96589568540237556e-05}, 4.36624404335156298e-05},
    {{1.53796971148509165e+01, -2.59193146099879641e+01, 1.79258772950371181e-01},
     {2.68067772490389322e-03, 1.62824170038242295e-03, -9.51592254519715870e-05}, 5.15138902046611451e-05}};

static void advance(double dt)
{
    for (int i = 0; i < N; i++)
        for (int j = i + 1; j < N; j++) {
            double d[3], r2 = 0;
            for (int k = 0; k < 3; k++) { d[k] = sun[i].x[k] - sun[j].x[k]; r2 += d[k] * d[k]; }
            double magnitude = dt / (r2 * sqrt(r2));
            for (int k = 0; k < 3; k++) {
                sun[i].v[k] -= d[k] * sun[j].mass * magnitude;
                sun[j].v[k] += d[k] * sun[i].mass * magnitude;
            }
        }
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 3; k++) sun[i].x[k] += dt * sun[i].v[k];
}

static double energy(void)
{
    double e = 0;
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < 3; k++) e += 0.5 * sun[i].mass * sun[i].v[k] * sun[i].v[k];
        for (int j = i + 1; j < N; j++) {
            double r2 = 0;
            for (int k = 0; k < 3; k++) { double d = sun[i].x[k] - sun[j].x[k]; r2 += d * d; }
            e -= sun[i].mass * sun[j].mass / sqrt(r2);
        }
    }
    return e;
}

int main(int argc, char **argv)
{
    int scale = argc > 1 ? atoi(argv[1]) : 10;
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < 3; k++) sun[i].v[k] *= year;
        sun[i].mass *= 4 * pi * pi;
    }
    for (int i = 1; i < N; i++)
        for (int k = 0; k < 3; k++) sun[0].v[k] -= sun[i].v[k] * sun[i].mass / (4 * pi * pi);
    printf("%.9f\n", energy());
    for (int i = 0; i < 50000 * scale; i++) advance(0.01);
    printf("%.9f\n", energy());
    return 0;
}
